"""Write the table of families: `PYTHONPATH=tests python -m families.table`, ten minutes.

Every line is measured anew, on a tiny random model; `--only` names the families of a shorter one.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from families.listed import FAMILIES
from families.proof import LEAST_SHARE, Proof, prove

PAGE = Path(__file__).parents[2] / "multirun" / "reference" / "families.md"
ORDER = ("works", "partly", "refused", "fails")
TEXT = """# Families

A tiny random model of every family, saved by transformers {transformers} and taken through the
package: loaded, walked, pruned by Wanda and SparseGPT, at 50 % and 2:4, repaired by DSnoT, LoRS and
SEFT, exported, and read by transformers alone.  {counts}.

* **share**: block parameters that are weights or biases of linears which saw tokens; {least} at
  least, or the state is `partly`.
* **walk**: largest distance of the walk's hidden states from those of a forward, relative.
* **Wanda**: weights on which its mask is that of `|W| sqrt(sum x^2)` in fp64; scores within 1e-5 of
  each other count as equal.
* **logits**: largest relative distance of the export read by transformers, after three repairs.

Made by `PYTHONPATH=tests python -m families.table`.

| family | class | share | walk | Wanda | logits | state |
|---|---|---:|---:|---:|---:|---|
{rows}
"""


def one(family: str) -> Proof:
    """The proof of one family, in a process that prints nothing."""
    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with TemporaryDirectory() as folder:
        proof = prove(family, Path(folder))
        return replace(proof, reason=proof.reason.replace(f"{folder}/saved", "FOLDER"))


def row(proof: Proof) -> str:
    """One line of the table; a number that was not reached is left out."""
    state = f"{proof.state}: {proof.reason}" if proof.reason else proof.state
    cells = [
        f"`{proof.family}`",
        f"`{proof.model_class}`",
        number(proof.share, "{:.1%}"),
        number(proof.replay, "{:.0e}"),
        number(proof.agreement, "{:.3%}"),
        number(proof.logits, "{:.0e}"),
        state.replace("|", "\\|"),
    ]
    return "| " + " | ".join(cells) + " |"


def number(value: float | None, form: str) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else form.format(value).replace("100.000%", "100%")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("families.table", description="Measure every family.")
    parser.add_argument("--only", nargs="+", default=FAMILIES, help="families, by model type")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--to", type=Path, default=PAGE, help="the page to write")
    asked = parser.parse_args(arguments)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.jobs, mp_context=context) as pool:
        proofs = []
        for proof in pool.map(one, asked.only):
            print(proof.family, proof.state, proof.reason, flush=True)
            proofs.append(proof)
    asked.to.write_text(page(proofs), encoding="utf-8")


def page(proofs: Sequence[Proof]) -> str:
    """The whole page, families that work first."""
    from transformers import __version__

    counted = Counter(proof.state for proof in proofs)
    counts = ", ".join(f"{counted[state]} {state}" for state in ORDER if counted[state])
    ordered = sorted(proofs, key=lambda proof: (ORDER.index(proof.state), proof.family))
    return TEXT.format(
        transformers=__version__,
        counts=f"Of {len(proofs)} families: {counts}",
        least=f"{LEAST_SHARE:.0%}",
        rows="\n".join(map(row, ordered)),
    )


if __name__ == "__main__":
    main()
