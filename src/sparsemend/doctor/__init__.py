"""Says before a run whether it can work here: memory, disk, surroundings."""
