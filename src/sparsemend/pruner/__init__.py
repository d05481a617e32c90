"""A weight and its statistics in, a weight and its support out."""
