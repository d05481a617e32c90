"""A sparse weight as bits and packed values, and its products on a CPU."""
