"""Turns weights that a family stores otherwise into ordinary linears, and back."""
