"""What tests of a network run against, users' own tests included: stand-ins that do the real thing."""
