"""A weight on its support: pattern, layer, count, selection, move."""
