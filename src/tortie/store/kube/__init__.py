"""The Kubernetes API as a datastore.

access     kubeconfig, environment, service account ──► where the server is, whom it trusts, as whom it is asked
client     requests, pages and watches over HTTP: `Api`; the server's refusals as our errors
crd        our resources <──► objects of crd.projectcalico.org/v1         no sockets
natives    Node, WorkloadEndpoint, ... <──► Kubernetes' Node, Pod, ...    no sockets
"""
