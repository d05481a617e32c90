"""Training of every kept weight, with a support that may move."""
