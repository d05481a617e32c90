"""The names of the measurements that others look up, `group/name` (no torch)."""

from __future__ import annotations

METRIC = "perplexity/test"
TASK_METRIC = "perplexity/task"
VALIDATION_METRIC = "perplexity/validation"
HARNESS = "zero_shot"  # zero_shot/<task>, zero_shot/<task>/<acc or acc_norm>
MEAN = f"{HARNESS}/mean"  # over the tasks; zero_shot/mean/<acc or acc_norm> too

MASKS_FORMAT = "sparsemend-masks-1"  # in the metadata of masks.safetensors

PARTS = "repair"  # folder in a run folder
STAGES = "stages"  # folder in a run folder: finished stages, until the run ends

RESULT = "result.json"
SWEEP = "sweep.json"  # in a sweep's folder
STATES = ("dense", "pruned", "repaired")  # of a model that a run measures


ROUNDINGS = ("pruner", "exact_budget")

ARTIFACTS = {  # what logger=wandb may upload -> its place in the run folder
    "result": "result.json",
    "masks": "masks.safetensors",
    "adapter": "adapter",
    "model": "model",
}
