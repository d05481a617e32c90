"""Tasks of lm-evaluation-harness, two of them shipped."""
