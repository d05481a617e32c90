"""Variants of one method, each at a learning rate of its own, in one table."""
