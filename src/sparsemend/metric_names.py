"""The names of the measurements that others look up, `group/name` (no torch)."""

METRIC = "perplexity/test"
TASK_METRIC = "perplexity/task"
VALIDATION_METRIC = "perplexity/validation"
HARNESS = "zero_shot"  # zero_shot/<task>, zero_shot/<task>/<acc or acc_norm>
MEAN = f"{HARNESS}/mean"  # over the tasks; zero_shot/mean/<acc or acc_norm> too
