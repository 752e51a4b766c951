"""Services as one node serves them: Service and EndpointSlice to what becomes of a connection (kube-proxy's part)."""
