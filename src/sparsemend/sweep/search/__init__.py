"""A search: trials of one key, chosen by a sampler, and their table."""
