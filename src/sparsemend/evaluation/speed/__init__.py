"""Tokens per second and memory of a sparse model in the forms that can be had."""
