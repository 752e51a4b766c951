"""The cluster's housekeeping: what no node can do for itself, because the node or the pod it was done for is gone.

    roster           which controllers there are, and what wakes them
    ipam_gc, node, auto_hosts, load_balancer            everywhere
    mirror (copies), endpoints, node_labels             for Calico's own programs on etcd
    compaction                                          etcd's history
    running, backoff                                    how they pass, and when what failed is tried again
    leader, configuration, running_config, health, metrics, main                            the program around them

Each decides on values and then acts by compare-and-swap. What one of them cannot do to one object is logged and tried
again, that object alone later each time, and never keeps it from the others.

Of several processes the holder of a Lease works. Two that worked at once would do no harm, each write being made only
on what was read: the lease saves work, and keeps what is written quiet.
"""
