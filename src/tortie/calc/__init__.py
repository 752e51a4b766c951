"""Cluster state -> what a node must do, and what may become cluster state at all. Pure: values in, values out."""
