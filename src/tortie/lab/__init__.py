"""A whole cluster on one machine: nodes, their switch and gateway, pods and an outside host as network namespaces.

    tortie lab up     topology (what there is) ─► network (namespaces, links) ─► kubelet (agents, pods) ─► BGP is up
    tortie lab down   everything that bears the lab's name goes, whatever was killed before

One background process per lab, the kubelet, runs the agents and the pods. All it knows is in the store, in the lab's
directory and in the kernel, so it may be killed at any instant and started again.
"""
