"""Where progress is mirrored."""
