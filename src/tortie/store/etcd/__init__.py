"""etcd as the datastore, laid out as Calico lays it out, so that both can share one.

    store ──┬─► layout     keys and JSON, both ways; no sockets
            ├─► writes     transactions whose outcome is always told rightly ─┐
            ├─► watch      a stream of changes, whichever member tells them ──┼─► wire ──► tls
            └─► reads, pages ─────────────────────────────────────────────────┘    │
                                                        members, tokens, what is tried again, what answers mean

`keyspace` is beside `store`: plain keys on the same wire, for flannel's leases.

Start with `store.EtcdStore`. Nothing is imported here: gRPC takes long, and `layout` does without.
"""
