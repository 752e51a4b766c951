"""The plugins `calico` and `calico-ipam`, served by the agent: a call comes in, and its answer goes out.

server ─► netconf, identity ─┬► add (pods) ─┐        addresses ─► IPAM, or the plugin that `ipam.type` names (delegate)
                             ├► plain ──────┼─ uses  joint ─────► a link of ours, or an external dataplane
                             ├► delete      │        records ───► what is read and written in the datastore
                             ├► check ──────┘        undo ──────► all of a call, or nothing
                             └► collect (GC)
"""
