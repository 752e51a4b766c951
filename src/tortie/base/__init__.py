"""What could be a library of its own: errors, plans, addresses, settings. Knows nothing of networks of pods."""
