"""One fit: module, plan, loss, callbacks, processes."""
