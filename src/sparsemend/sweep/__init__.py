"""Many runs: cells, and the two sweeps that choose them, search and arena."""
