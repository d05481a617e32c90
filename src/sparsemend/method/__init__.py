"""How a pruned model is mended; adapter/ is what methods share."""
