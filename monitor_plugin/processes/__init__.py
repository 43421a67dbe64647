"""One process, its tree, the process table, samples, exits and control groups."""
