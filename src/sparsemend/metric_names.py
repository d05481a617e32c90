"""The names of the measurements that others look up, `group/name` (no torch)."""

METRIC = "perplexity/test"
TASK_METRIC = "perplexity/task"
VALIDATION_METRIC = "perplexity/validation"
