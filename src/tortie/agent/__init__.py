"""The node daemon: datastore in, kernel out; it serves the CNI plugin and answers questions about its node.

store ─watch─► view (Cluster) ─DesiredState─► dataplane worker ─► nft, routes
                  │      ▲                └─► routing worker   ─► bird.conf, BIRD
                  │      └── endpoints that CNI calls make
                  └─► pods (endpoints follow their pods' labels)
"""
