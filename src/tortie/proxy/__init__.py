"""What a node does for services beside its rules: health checks, ARP and NDP, kube-proxy; `tortie proxy`."""
