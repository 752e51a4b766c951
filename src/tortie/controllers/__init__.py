"""The cluster's housekeeping: what no node can do for itself, because the node or the pod it was done for is gone.

`ipam_gc` and `node` each decide on values and then act by compare-and-swap; `main` runs them. What one of them cannot
do to one object is logged and tried again, and never keeps it from the others.

One such process per cluster is enough. Several do no harm, each write being made only on what was read; electing a
leader would merely save work, and with the embedded datastore there is nobody to elect it from.
"""
