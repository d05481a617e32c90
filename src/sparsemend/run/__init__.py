"""One run, top to bottom; it alone builds the objects of a run."""
