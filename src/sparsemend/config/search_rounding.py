"""The rounding of a search that is given none: the exact budget wherever it is legal.

Trials are compared by their perplexity alone, and the published rules of rounding leave them at
sparsities that differ by their rates: 0.6977 - 0.6991 for a target of 0.7 on the embedded model,
where one point moves by a tenth of its perplexity.  conf/search/base.yaml takes this value.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from sparsemend.config.flags import defines, says

RESOLVER = "rounding_of_search"


def rounding_of_search(*, _root_: DictConfig) -> str:
    """exact_budget; `pruner` where a pattern fixes the zeros, or pruner or method has no count."""
    legal = (
        _root_.pattern == "unstructured"
        and _counts(_root_.pruner)
        and _root_.method.get("start") != "pruner"  # DSnoT's, which prunes again by row
    )
    return "exact_budget" if legal else "pruner"


def _counts(pruner: DictConfig) -> bool:
    """Whether a pruner, and one that chooses the support for it, can leave a number of zeros."""
    return (
        not says(pruner, "reads_support")
        and not pruner.get("variant")  # Wanda's, one threshold for the whole model
        and defines(str(pruner.get("_target_")), "exactly")
        and (pruner.get("mask") is None or _counts(pruner.mask))
    )


OmegaConf.register_resolver(RESOLVER, rounding_of_search, replace=True)
