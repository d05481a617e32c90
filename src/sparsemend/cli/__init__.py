"""Five console commands."""
