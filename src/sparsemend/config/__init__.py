"""The command line and the composed config as plain data."""
