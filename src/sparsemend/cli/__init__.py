"""Six console commands."""
