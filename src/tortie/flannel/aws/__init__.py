"""The cloud of the backend aws-vpc: decisions about its route tables, and calls of its services, apart."""
