"""One file per kind of kernel object. Siblings do not know one another; `converge` drives them in order."""
