"""Refuses what cannot work before torch is imported."""
