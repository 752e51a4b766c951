"""BGP on values: who peers with whom, and what BIRD says about it. Opens no socket and reads no clock."""
