"""flanneld: a subnet for each node, and a way from node to node.

    etcd, or Kubernetes ──managers──► leases of all nodes ──backends──► FlannelState ──stages──► the kernel
                        ◄── own lease ──┘                        (pure)

A backend decides what the kernel should be like, a stage for each kind of kernel object makes it so. Names, formats
and defaults are flannel's: nodes that run flanneld and nodes that run this are one network.
"""
