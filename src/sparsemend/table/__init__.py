"""Numbers beside the papers', and the page of all results."""
