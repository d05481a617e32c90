"""Rates of blocks and linears: units, budgets, limits, files."""
