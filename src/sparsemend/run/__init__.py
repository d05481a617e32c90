"""One run, top to bottom; the only room that builds configured objects."""
