"""A sparse update with positions that move: layer, window, rounds, optimizer."""
