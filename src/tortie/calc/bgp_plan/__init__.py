"""Changes of routing that break no route: which sessions and ways there are, and an order of steps between them."""
