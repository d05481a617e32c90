"""keep * (W + s B A) in one pass over the weight, and what computes it on each device."""
