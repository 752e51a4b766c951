"""The nouns: every resource a typed frozen value, with strict parsing, validation and dumping. Pure."""
