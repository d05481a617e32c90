"""What papers claim, measured: statements with a rule, verdicts with an interval, pages."""
