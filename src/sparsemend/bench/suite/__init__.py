"""What the bench measures: a contract in base, one file per suite."""
