"""The only package that changes this machine: links, addresses, routes, neighbours, rules, namespaces, sysctls.

Everything here blocks for as long as the kernel does (microseconds, mostly) and knows nothing of pods or policy; an
asyncio program calls it from a worker thread. One file per kind of kernel object, all over `kernel.netlink`.
"""
