"""SpIEL: sparse deltas anywhere, pruned back at the end."""
