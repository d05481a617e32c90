"""A checkpoint as a model in memory: whole, or refused in one line."""
