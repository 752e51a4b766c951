"""What runs on the stock kernel: ordinary tests, collected outside and reported there, run by a pytest in the guest.

That pytest has no plugins: no `async def`. What they import is slow there; what they start is slower.
"""
