"""LoSA: prune and repair in turns, with rates and ranks by block."""
