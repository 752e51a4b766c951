"""The container network interface: its protocol as values, chains of plugins, and the stub that reaches the agent."""
