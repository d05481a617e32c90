"""DSnoT: swaps of kept and pruned weights without training."""
