"""Text from a model folder, as it comes."""
