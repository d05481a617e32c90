"""sparsemend: repair pruned large language models without losing a single zero."""

__version__ = "0.1.0"
