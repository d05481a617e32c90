"""Statements: what a paper claims, as an effect with a direction, written before it is measured.

The design in one screen.  A claim is a yaml of conf/experiment/claims: its sweeper's parameters are
the cells, and its callback `claim` lists statements.  A statement names two sides and a measure:

    effect  = measure of `ours` / measure of `rival`, at equal text, pruner, sparsity and seed
    rule    = holds here          where the 95 % interval of the effect lies below `at_most`
              does not hold here  where it lies above
              not told apart      where it holds `at_most`
              mixed               over several settings, where one says the contrary of another

The interval is the arena's, paired over seeds and test windows (sweep/arena/interval).  A
side is a set of conditions on a measured state of a run (`facts.py`), so that rows of the arena,
schedules and methods can stand against each other, and a pruned model against its own repair.
Where a side holds several values of the key that the sweeper chose (a learning rate, ATP's common
difference), the value counts that validation chooses on the first seed (`choice.py`), and a page
says what choosing by the test text would have gained.  `read.py` turns run folders into verdicts,
`page.py` and `plot.py` into files.  No text of a verdict is written by hand.

The rule that counts is the one in the sweep's multirun.yaml, as its command found it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from sparsemend.names import METRIC, TASK_METRIC
from sparsemend.sweep.claims.choice import TrialRule

# measure -> what the page calls it; the first two have a loss per test window
MEASURES = {
    METRIC: "perplexity",
    TASK_METRIC: "task perplexity",
    "step_seconds": "seconds of a training step, without validations and what comes before",
    "peak_bytes": "peak MiB of repair",
}
PER_WINDOW = (METRIC, TASK_METRIC)
FACTS = ("row", "method", "schedule", "variant", "task")  # that a side may be named by
RULES = "multirun.yaml"  # in a sweep's folder


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One sentence of a paper as a comparison.

    ours, rival: conditions on the facts of a measured state.  source: where the paper says it.
    beside: tables (`paper/table`) whose cells may stand beside a setting; published: identities of
    single numbers that belong to the whole statement.
    """

    says: str
    ours: Mapping[str, Any]
    rival: Mapping[str, Any]
    measure: str
    at_most: float
    source: str
    share_of: Mapping[str, Any] | None
    share: float | None
    beside: tuple[str, ...]
    published: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a sweep's folder says of its claim: statements, the key that it chose, what it swept."""

    statements: tuple[Statement, ...]
    swept: Mapping[str, Sequence[str]]  # key -> the values that the experiment sweeps
    chosen_key: str | None
    chosen_on: int  # the seed
    trial_rule: TrialRule  # among which was chosen

    def of_the_list(self, values: Iterable[Any]) -> set[Any]:
        """Those of a row's values that a list of points holds; none where there is no list.

        A row that has none of them was chosen by other points, before or in another command.
        """
        points = self.trial_rule.points
        return set() if isinstance(points, str) else {*values} & {*points}


def read_rules(sweep: Path) -> Rules:
    """The rules of the sweep in a folder; raises ValueError where it holds none."""
    path = sweep / RULES
    if not path.is_file():
        raise ValueError(f"{sweep} has no {RULES}, which says what its claim states; run it again")
    config = OmegaConf.load(path)
    callback = OmegaConf.select(config, "hydra.callbacks.claim")
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    choose = OmegaConf.select(config, "hydra.sweeper.choose") or {}
    if callback is None:
        raise ValueError(f"{path} states no claim; give the folder of an experiment=claims/...")
    return Rules(
        statements=statements_of(callback.statements),
        swept={str(key): _values(f"{key}={values}") for key, values in params.items()},
        chosen_key=choose.get("key"),
        chosen_on=int(choose.get("seed") or 0),
        trial_rule=trial_rule_of(choose),
    )


def trial_rule_of(choose: Mapping[str, Any]) -> TrialRule:
    """The trials that `hydra.sweeper.choose` asks for."""
    points = choose.get("points")
    numbers = (choose.get(key) for key in ("count", "stop_after"))
    return TrialRule(
        tuple(map(float, points)) if isinstance(points, ListConfig | list) else str(points),
        *(None if number is None else int(number) for number in numbers),
    )


def _values(line: str) -> tuple[str, ...]:
    """The values that an override line of a sweeper's parameters sweeps, one where it is a list."""
    override = OverridesParser.create().parse_override(line)
    if override.is_discrete_sweep():
        return tuple(str(value) for value in override.sweep_string_iterator())
    return (line.partition("=")[2],)


def statements_of(nodes: ListConfig | Sequence[Any]) -> tuple[Statement, ...]:
    """The statements of a claim's yaml; raises ValueError on one that is not whole."""
    entries = OmegaConf.to_container(nodes) if isinstance(nodes, ListConfig) else list(nodes)
    assert isinstance(entries, list)
    return tuple(_statement(entry) for entry in entries)


def _statement(entry: Any) -> Statement:
    names = {field.name for field in fields(Statement)}
    content = dict(entry) if isinstance(entry, dict | DictConfig) else {}
    content = {"beside": (), "published": (), "share_of": None, "share": None, **content}
    wrong = sorted(names.symmetric_difference(content))
    if wrong:
        raise ValueError(
            f"a statement of a claim lacks or does not know {', '.join(wrong)}; it has "
            f"{', '.join(sorted(names))}"
        )
    says = content["says"]
    if not (isinstance(says, str) and says.isprintable() and "|" not in says):
        raise ValueError(f"says={says!r} of a statement is no line of text without |")
    for key in ("ours", "rival", "share_of"):
        if not (isinstance(content[key], Mapping) and content[key]) and content[key] is not None:
            raise ValueError(f"{key}={content[key]} of a statement is no conditions, as {{row: x}}")
        _check_conditions(key, content[key] or {})
    if content["ours"] is None or content["rival"] is None:
        raise ValueError(
            "a statement of a claim has ours and rival; rival={method: none} is as pruned"
        )
    for key in ("beside", "published"):
        if isinstance(content[key], str) or not isinstance(content[key], Sequence):
            raise ValueError(f"{key}={content[key]} of a statement is no list")
    if not isinstance(content["at_most"], int | float):
        raise ValueError(f"at_most={content['at_most']} of a statement is no number")
    if str(content["measure"]) not in MEASURES:
        raise ValueError(
            f"measure={content['measure']} of a statement is not one of {', '.join(MEASURES)}"
        )
    if not float(content["at_most"]) > 0:
        raise ValueError(f"at_most={content['at_most']} of a statement is not above 0")
    if (content["share_of"] is None) != (content["share"] is None):
        raise ValueError("a statement of a claim has share_of and share, or neither")
    if content["share"] is not None and not 0 < float(content["share"]) <= 1:
        raise ValueError(f"share={content['share']} of a statement is not in (0, 1]")
    lists = {key: tuple(content[key]) for key in ("beside", "published")}
    return Statement(**content | lists)


def _check_conditions(key: str, conditions: Mapping[str, Any]) -> None:
    for name in conditions:
        if name not in FACTS and "." not in str(name):
            raise ValueError(
                f"{key} of a statement asks for {name}, which is none of {', '.join(FACTS)}, nor a "
                "dotted key such as method.rank"
            )
