"""All runs as one HTML page."""
