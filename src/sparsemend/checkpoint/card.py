"""Write the README.md of an exported model: what it is, its metrics, its protocol, its command.

Everything comes from the run's result.json, except the licence, which the base model states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id

from sparsemend.checkpoint.licence import BaseModel, base_model
from sparsemend.config.export import packed_values
from sparsemend.config.kinds import kinds
from sparsemend.names import PACKED_FORMAT, STATES
from sparsemend.result.format import format_metric

CARD = """---
{front_matter}---
# {title}

A pruned and repaired causal language model written by sparsemend.  {stored}
{adapter}
| | |
|---|---|
| base model | `{base}` |
| licence of the base model | {licence} |
| pruner | `{pruner}` |
| sparsity schedule | `{schedule}` |
| repair method | `{method}` |
| pattern | {pattern} |
| sparsity of prunable weights | {achieved:.6f} (asked {target}) |
| sparsity of all parameters | {of_all:.6f} |
| prunable weights that are not zero | {nonzero:,} of {prunable:,} |

Prunable weights are those of the linears inside decoder blocks{dense}.{kept}

## Metrics

{metrics}

A difference is repaired minus dense; lower is better for perplexity, higher for accuracy and speed.

## Protocol

| | |
|---|---|
{protocol}

## Cost

| stage | seconds | peak MiB |
|---|---:|---:|
{cost}

Trained parameters: {trained:,}.

## Reproduce

```
{command}
```

{provenance}
"""
DENSE = """Weights are stored dense;
the zeros are exact and `masks.safetensors` holds the supports (one bit per weight)."""
PACKED = """The weights of its sparse
linears are stored packed: a bit per weight, and the kept ones in {values} (`{form}`).  They are
multiplied so on a CPU, by `sparsemend-generate FOLDER --prompt TEXT` or, in Python, by the model
that `sparsemend.api.load_packed_model(FOLDER)` gives; transformers alone does not load them."""
ROUNDED = """
**int8 values are rounded**, with a scale per row; the metrics below are those of the weights before
that.
"""
ADAPTER = """
**These weights are the sparse base alone.**  The repair is an adapter that would fill the zeros if
it were merged; it lies in `adapter/` of the run, in PEFT's layout, and the metrics of `repaired`
are those of base and adapter together.  PEFT loads it where there is an `adapter_config.json`: not
where fused experts have factors, which `sparsemend from_run=` alone reads.
"""
PROTOCOL = {  # key of result.json's protocol -> its name in the card
    "corpus": "corpus",
    "split": "split",
    "windows": "windows",
    "seqlen": "tokens per window",
    "bos": "BOS first in every window",
    "chat_template": "examples in the chat template",
    "tokens": "tokens",
    "dtype": "dtype",
    "stored_as": "weights of the base model, turned back into numbers",
    "calibration_samples": "calibration windows",
    "calibration_from": "calibration windows from",
    "statistics": "statistics",
    "true_sequential": "true-sequential order inside a block",
    "data_hash": "SHA-256 of the data",
}
REPAIR = {"steps": "optimizer steps", "windows_per_step": "windows per optimizer step"}


def model_card(result: Mapping[str, Any], command: str) -> str:
    """The card's text, from the content of a result.json and the command that repeats the run."""
    config, sparsity = result["config"], result["sparsity"]
    base = base_model(config["model"])
    return CARD.format(
        front_matter=yaml.safe_dump(_front_matter(base, config), sort_keys=False),
        title=f"{config['model']['name']}, {sparsity['achieved']:.0%} sparse",
        stored=_storage(config),
        adapter=ADAPTER if sparsity["effective"] < sparsity["achieved"] else "",
        base=base.name,
        licence=base.licence,
        pruner=_member(config["pruner"]),
        schedule=_member(config["sparsity_schedule"]),
        method=_member(config["method"]),
        pattern=sparsity["pattern"],
        achieved=sparsity["achieved"],
        target=sparsity["target"],
        of_all=sparsity["achieved_of_all_parameters"],
        nonzero=sparsity["prunable_weights"] - sparsity["zeros"],
        prunable=sparsity["prunable_weights"],
        dense=_dense_phrase(sparsity.get("excluded", []), _linears(sparsity)),
        kept=_kept_dense(sparsity.get("stays_dense", {}), _linears(sparsity)),
        metrics=metrics_table(result["metrics"]),
        protocol="\n".join(_protocol_rows(result)),
        cost="\n".join(_cost_rows(result["cost"])),
        trained=result["cost"].get("repair", {}).get("trained_parameters", 0),
        command=command,
        provenance=_provenance(result["provenance"]),
    )


def _storage(config: Mapping[str, Any]) -> str:
    """How the weights are stored."""
    values = packed_values(config)
    if values is None:
        return DENSE
    text = PACKED.format(values=values, form=PACKED_FORMAT)
    return f"{text}\n{ROUNDED}" if values == "int8" else text


def _linears(sparsity: Mapping[str, Any]) -> list[str]:
    """Every linear inside the decoder blocks, prunable or not."""
    return [*sparsity.get("per_linear", {}), *sparsity.get("excluded", [])]


def _dense_phrase(excluded: Sequence[str], among: Sequence[str]) -> str:
    """What a run left dense by choice, a name for all blocks; empty where it left nothing."""
    if not excluded:
        return ""
    names = "`, `".join(kinds(excluded, among))
    return f", but for {len(excluded)} that were left dense: `{names}`"


def _kept_dense(reasons: Mapping[str, str], among: Sequence[str]) -> str:
    """A sentence for each reason for which linears that count as prunable lost no weight."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return "".join(
        f"\nOf them {len(names)} stay dense ({reason}): `{'`, `'.join(kinds(names, among))}`."
        for reason, names in by_reason.items()
    )


def _front_matter(base: BaseModel, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the Hub reads, which refuses a card whose base model has no name of a repository."""
    try:
        validate_repo_id(base.name)
        origin = {"base_model": base.name}
    except HFValidationError:  # of a folder on this machine
        origin = {}
    return {
        **base.front_matter,
        "library_name": "transformers" if packed_values(config) is None else "sparsemend",
        "pipeline_tag": "text-generation",
        **origin,
        "tags": ["sparse", "pruned", "sparsemend"],
    }


def metrics_table(metrics: Mapping[str, Mapping[str, float | None]]) -> str:
    """A row per metric, a column per state that was measured, and repaired minus dense."""
    states = [state for state in STATES if state in metrics]
    names = list(dict.fromkeys(name for state in states for name in metrics[state]))
    rows = [
        "| metric | " + " | ".join(states) + " | difference |",
        "|---|" + "---:|" * (len(states) + 1),
    ]
    for name in names:
        values = [_number(metrics[state], name) for state in states]
        rows.append(f"| {name} | {' | '.join(values)} | {_difference(metrics, name)} |")
    return "\n".join(rows)


def _number(values: Mapping[str, float | None], name: str) -> str:
    if name not in values:
        return "-"
    value = values[name]
    if value is None:
        return "not finite"
    return format_metric(value, 4, large="{:,.0f}".format)


def _difference(metrics: Mapping[str, Mapping[str, float | None]], name: str) -> str:
    dense, repaired = (metrics.get(state, {}).get(name) for state in ("dense", "repaired"))
    if dense is None or repaired is None:
        return "-"
    return f"{repaired - dense:+.4f}"


def _protocol_rows(result: Mapping[str, Any]) -> list[str]:
    protocol, provenance = result["protocol"], result["provenance"]
    rows = [
        f"| {label} | {_plain(protocol[key])} |"
        for key, label in PROTOCOL.items()
        if key in protocol
    ]
    rows += [
        f"| {name} | {', '.join(f'{key} {value}' for key, value in section.items())} |"
        for name, section in protocol.items()
        if isinstance(section, Mapping)
    ]
    rows += [
        f"| {label} | {_plain(result['repair'][key])} |"
        for key, label in REPAIR.items()
        if key in result.get("repair", {})
    ]
    rows += [
        f"| evaluation | `{_member(section)}` |"
        for section in result["config"]["evaluation"].values()
    ]
    rows.append(f"| seed | {result['config']['seed']} |")
    rows.append(f"| device | {provenance['device']}, {provenance['threads']} threads |")
    return rows


def _cost_rows(cost: Mapping[str, Any]) -> list[str]:
    return [
        f"| {stage} | {spent['seconds']:,.1f} | {spent['peak_bytes'] / 2**20:,.0f} |"
        for stage, spent in cost.items()
    ]


def _provenance(provenance: Mapping[str, Any]) -> str:
    commit = provenance["commit"] or "unknown"
    changed = ", with uncommitted changes" if provenance["dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in provenance["packages"].items())
    return f"Made at commit {commit}{changed} with {versions}, Python {provenance['python']}."


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _member(section: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in section.items() if k != "_target_")
    return f"{section['_target_'].rsplit('.', 1)[-1]}({settings})"
