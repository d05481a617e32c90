"""SEFT: sparse deltas that move, and as many weights pruned for them."""
