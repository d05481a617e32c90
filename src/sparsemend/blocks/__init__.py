"""Finds a model's decoder blocks and visits them one by one."""
