"""Block by block towards the dense block's outputs."""
