"""The command line and the composed config as plain data."""

from sparsemend.config import search_rounding as search_rounding  # registers a resolver
