"""The `tortie` command line: calicoctl's verbs and our own, one module per group of commands, joined in `main`."""
