"""An arena: every method on one pruned model at an equal budget, in one table."""
