"""Names that several rooms look up: measurements (`group/name`), artefacts, states (no torch)."""

from __future__ import annotations

METRIC = "perplexity/test"
TASK_METRIC = "perplexity/task"
VALIDATION_METRIC = "perplexity/validation"
SPEED = "speed"
HARNESS = "zero_shot"  # zero_shot/<task>, zero_shot/<task>/<acc or acc_norm>
MEAN = f"{HARNESS}/mean"  # over the tasks; zero_shot/mean/<acc or acc_norm> too

STATES = ("dense", "pruned", "repaired")  # of a model that a run measures
DTYPE_NAMES = ("float32", "bfloat16", "float16")
PACKED_VALUES = ("float32", "bfloat16", "int8")  # in which packed weights may be stored
ROUNDINGS = ("pruner", "exact_budget")

# files and folders of a run folder
RESULT = "result.json"
SWEEP = "sweep.json"  # in a sweep's folder
MASKS = "masks.safetensors"  # also beside the weights of an exported model
MASKS_FORMAT = "sparsemend-masks-1"  # in the metadata of MASKS
MODEL = "model"  # the export
PACKED_FORMAT = "sparsemend-packed-1"  # in the metadata of PACKED_FILES
PACKED_FILES = "packed-*-of-*.safetensors"  # the weights of an export with export_form=packed
ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = f"{CHECKPOINTS}/last.ckpt"
CURVES = "training"  # and training-2, ... of later fits and attempts; metrics.csv in each
WINDOW_LOSSES = "window_losses"
PARTS = "repair"
STAGES = "stages"  # finished stages, until the run ends
BLOCKS = "blocks"  # changed blocks of a model that streams, until the run ends
HIDDEN_STATES = "hidden_states"  # those between two blocks, until the run ends
BEGUN = "begun"  # in STAGES: measurements under way
TENSORBOARD = "tensorboard"
WANDB_RUN_ID = "wandb_run_id"

# what logger=wandb may upload -> its place in the run folder
ARTIFACTS = {"result": RESULT, "masks": MASKS, "adapter": ADAPTER, "model": MODEL}


def weights_of(metric: str) -> str:
    """The name of the windows' weights in a metric's mean, beside their losses."""
    return f"{metric}/weights"
