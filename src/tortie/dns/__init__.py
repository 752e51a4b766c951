"""Names of services: `tortie dns` answers for cluster.local as Kubernetes says."""
