"""Overrides with which each member, and each form of it that computes otherwise, runs quickly."""

from __future__ import annotations

FIT = (  # four steps of two micro-batches, validated and saved halfway
    "method.max_steps=4",
    "method.validate_every=2",
    "method.checkpoint_every=2",
    "method.windows_per_step=2",
    "hardware.micro_batch=1",
)
ROUNDS = ("method.update_interval=3", "method.accumulation_steps=1")
EVOLVING = (*FIT, *ROUNDS)
LOSA = ("method=losa", "method.rounds=2", "method.similarity_samples=4", *FIT)
TRAINED = {
    "lora": ("method=lora", *FIT),
    "lora_prune": ("method=lora_prune", *FIT),
    "lors": ("method=lors", *FIT),
    "lors derived": ("method=lors", "method.mask=derived", *FIT),
    "lors tiled": ("method=lors", "method.grad_mode=exact_tiled", "method.tile_rows=5", *FIT),
    "losa": LOSA,
    "losa carried": (*LOSA, "method.optimizer_state=carried", "method.dropout=0"),
    "masked_full": ("method=masked_full", *FIT),
    "masked_full muon": ("method=masked_full", "method.scope=all", "method.optimizer=muon", *FIT),
    "masked_full set": (
        *("method=masked_full", "method.mask_update=set", "method.update_interval=1"),
        *("method.update_until=1.0", *FIT),
    ),
    "masked_full rigl_momentum": (
        *("method=masked_full", "method.mask_update=rigl_momentum", "method.update_interval=3"),
        *("method.update_until=1.0", *FIT),
    ),
    "masked_lora": ("method=masked_lora", *FIT),
    "masked_lora two_gemm": ("method=masked_lora", "method.form=two_gemm", *FIT),
    "masked_lora checkpointed": (
        *("method=masked_lora", "hardware.activation_checkpointing=true", *FIT),
    ),
    "masked_lora distilled": (
        *("method=masked_lora", "method.distill.weight=0.5", "method.distill.hidden_weight=1"),
        *FIT,
    ),
    "perp": ("method=perp", *FIT),
    "perp released": ("method=perp", "method.trained=[biases,norms,lm_head,mask_lora]", *FIT),
    "seft": ("method=seft", *EVOLVING),
    "spiel": ("method=spiel", *EVOLVING),
    "spiel scatter": ("method=spiel", *EVOLVING, "method.kernel=scatter"),
    "spiel auto": ("method=spiel", *EVOLVING, "method.kernel=auto"),
    "spiel moments": ("method=spiel", "method.selection=moments", *EVOLVING),
    "spp": ("method=spp", *FIT),
    "spp plain": ("method=spp", "method.form=plain", *FIT),
}
RECONSTRUCT = ("method=reconstruct", "method.epochs=2", "method.windows_per_step=2")
UNTRAINED = {
    "none": ("method=none",),
    "dsnot": ("method=dsnot",),
    "dsnot faithful": ("method=dsnot", "method.mode=faithful", "method.same_sign=true"),
    "dsnot obs": ("method=dsnot", "pruner=sparsegpt", "method.sparsegpt_weights=obs"),
    "reconstruct": RECONSTRUCT,
    "reconstruct low rank": (
        *(*RECONSTRUCT, "method.form=masked_lora", "method.targets=dense_stream"),
        *("method.biases=true", "method.norms=true"),
    ),
}
NOTHING = ("method=none",)
PRUNERS = {
    "wanda": (),
    "wanda variant": ("pruner.variant=true",),
    "wanda 2:4": ("pattern=2:4", "sparsity=0.5"),
    "wanda 16:32": ("pattern=16:32", "sparsity=0.5", "pattern_tail=reference"),
    "wanda exact": ("rounding=exact_budget",),
    "wanda dense": ("statistics=dense",),
    "wanda sequential": ("true_sequential=true",),
    "magnitude": ("pruner=magnitude",),
    "magnitude row": ("pruner=magnitude", "pruner.group=row", "rounding=exact_budget"),
    "ria": ("pruner=ria",),
    "sparsegpt": ("pruner=sparsegpt",),
    "sparsegpt 2:4": ("pruner=sparsegpt", "pattern=2:4", "sparsity=0.5"),
    "admm": ("pruner=admm",),
    "admm row": ("pruner=admm", "pruner.group=row"),
    "none": ("pruner=none", "sparsity=0"),
}
SCHEDULES = {
    "uniform": (),
    "alphapruning": ("sparsity_schedule=alphapruning", "sparsity_schedule.metric=alpha_peak"),
    "atp": ("sparsity_schedule=atp", "sparsity_schedule.common_difference=0.05"),
    "dlp": ("sparsity_schedule=dlp",),
    "er": ("sparsity_schedule=er",),
    "er_plus": ("sparsity_schedule=er_plus",),
    "global": ("sparsity_schedule=global", "sparsity_schedule.score=wanda"),
    "lamp": ("sparsity_schedule=lamp",),
    "owl": ("sparsity_schedule=owl",),
    "rmi": ("sparsity_schedule=rmi", "sparsity_schedule.similarity_samples=4"),
}
