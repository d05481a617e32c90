"""A model in, named numbers out."""
