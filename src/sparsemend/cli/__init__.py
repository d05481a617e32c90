"""Seven console commands."""
