"""The cells of a claim: trials on one seed, the chosen value for all, numbers that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from support import result_folders
from support.command_runs import cells_of, put_workspace, sparsemend_here, sweep_files
from support.configs import compose
from support.tiers import slow_but_for

from sparsemend.config.compose import compose_command
from sparsemend.config.locations import conf_folder
from sparsemend.sweep.checks import check_sweep
from sparsemend.sweep.claims.statements import statements_of
from sparsemend.sweep.claims.sweeper import ClaimSweeper, row_of
from sparsemend.table.published import find_cell, published_numbers

CLAIMS = sorted(path.stem for path in (conf_folder() / "experiment" / "claims").glob("*.yaml"))
KEY = "method.learning_rate"


class Recorded(ClaimSweeper):
    """A sweeper whose cells only leave a validation perplexity, the distance of a rate from 0.01.

    Jobs of `method=none` have no rate.
    """

    start: float | str | None = 0.01
    validates = True

    def __init__(self, root: Path, jobs: list[list[str]], choose: dict[str, Any]) -> None:
        defaults = {"seed": 0, "points": "bracket", "factor": 3.0, "count": None, "bound": None}
        super().__init__(None, None, choose={**defaults, "stop_after": None, **choose})
        self.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(root)}}})
        self.jobs = jobs
        self.ran: list[tuple[int, list[str]]] = []

    def jobs_of(self, arguments: list[str]) -> list[list[str]]:
        return self.jobs

    def _config_of(self, job: Any) -> DictConfig:
        trains = "method=none" not in job
        values = [float(line.partition("=")[2]) for line in job if line.startswith(KEY)]
        section = {"learning_rate": values[0] if values else self.start} if trains else {}
        measured = {"perplexity": {"validation": self.validates}}
        return OmegaConf.create({"method": section, "evaluation": measured, "seed": 0})

    def launch(self, jobs: list[list[str]], *, first: int) -> list[Any]:
        assert self.config is not None
        (job,) = jobs
        self.ran.append((first, job))
        folder = Path(self.config.hydra.sweep.dir) / str(first)
        content = result_folders.result()
        rate = next((float(o.partition("=")[2]) for o in job if o.startswith(KEY)), 0.01)
        content["metrics"]["repaired"]["perplexity/validation"] = abs(rate - 0.01)
        result_folders.write(folder, content)
        (folder / ".hydra").mkdir(exist_ok=True)
        OmegaConf.save(OmegaConf.create(job), folder / ".hydra" / "overrides.yaml")
        return []


def jobs_with(*rows: str) -> list[list[str]]:
    return [[f"seed={seed}", row] for seed in (0, 1) for row in rows]


def test_trials_are_of_one_seed_and_all_seeds_get_the_chosen_value(tmp_path: Path) -> None:
    sweeper = Recorded(tmp_path, jobs_with("method=none", "method=lors"), {"key": KEY})
    sweeper.sweep([])
    rates = [f"{KEY}={rate}" for rate in ("0.01", "0.00333333", "0.03")]
    assert [job for _, job in sweeper.ran] == [
        ["seed=0", "method=none"],
        *(["method=lors", "seed=0", rate] for rate in rates),
        ["method=lors", "seed=0", rates[0]],  # its cell is there already
        ["seed=1", "method=none"],
        ["method=lors", "seed=1", rates[0]],
    ]
    assert [number for number, _ in sweeper.ran] == [0, 1, 2, 3, 1, 4, 5]


def test_a_part_of_a_claim_takes_up_the_cells_that_are_there(tmp_path: Path) -> None:
    Recorded(tmp_path, jobs_with("method=lors")[:1], {"key": KEY, "points": [0.01, 0.1]}).sweep([])
    later = Recorded(tmp_path, jobs_with("method=lors")[1:], {"key": KEY, "points": [0.01, 0.1]})
    later.sweep([])
    # the trials of seed 0 once more, which a real cell finds finished, and a new cell for seed 1
    assert [number for number, _ in later.ran] == [0, 1, 2]
    assert later.ran[-1][1] == ["method=lors", "seed=1", f"{KEY}=0.01"]


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_trial_counts_once_it_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """One that another process runs is waited for; one that failed is worse than any."""
    sweeper = Recorded(tmp_path, jobs_with("method=lors"), {"key": KEY})
    pauses: list[float] = []
    monkeypatch.setattr("sparsemend.sweep.claims.sweeper.sleep", pauses.append)
    monkeypatch.setattr(
        "sparsemend.sweep.claims.sweeper.runs_here", lambda result, _: result.status == "running"
    )
    launch = sweeper.launch

    def at_first_otherwise(jobs: list[list[str]], *, first: int) -> list[Any]:
        launched = launch(jobs, first=first)
        if f"{KEY}=0.01" in jobs[0] and not (status == "running" and pauses):
            path = tmp_path / str(first) / "result.json"
            path.write_text(path.read_text().replace('"finished"', f'"{status}"'))
        return launched

    monkeypatch.setattr(sweeper, "launch", at_first_otherwise)
    sweeper.sweep([])
    assert len(pauses) == (status == "running")
    best = "0.01" if status == "running" else "0.00333333"
    assert sweeper.ran[-1][1] == ["method=lors", "seed=1", f"{KEY}={best}"]


def test_a_value_of_the_chosen_key_is_refused(tmp_path: Path) -> None:
    sweeper = Recorded(tmp_path, jobs_with("method=lors"), {"key": KEY})
    with pytest.raises(CompactHydraException, match=f"{KEY}=0.1 would have no effect"):
        sweeper.sweep(["arena=lors", f"{KEY}=0.1"])
    assert sweeper.ran == []


@pytest.mark.parametrize(
    ("choose", "attributes", "said"),
    [
        ({}, {"start": None}, f"{KEY}=None is no value above 0 at which a bracket begins"),
        ({}, {"start": 0.0}, f"{KEY}=0.0 is no value above 0 at which a bracket begins"),
        ({"points": "all"}, {}, "points=all is not a list"),
        ({"stop_after": 0}, {}, "stop_after=0 is not null or an integer of at least 1"),
        ({}, {"validates": False}, "it is not measured; set evaluation.perplexity.validation=true"),
    ],
)
def test_trials_that_cannot_be_made_are_refused_before_any_cell(
    tmp_path: Path, choose: dict[str, Any], attributes: dict[str, Any], said: str
) -> None:
    jobs = jobs_with("method=none", "method=lors")
    sweeper = Recorded(tmp_path, jobs, {"key": KEY, **choose})
    for name, value in attributes.items():
        setattr(sweeper, name, value)
    with pytest.raises(CompactHydraException, match=said):
        sweeper.sweep([])
    assert sweeper.ran == []


def test_a_key_that_only_the_sweep_gives_a_value_is_chosen(tmp_path: Path) -> None:
    """As ATP's common difference, which has none in its yaml."""
    jobs = [[*job, f"{KEY}=0.0"] for job in jobs_with("method=lors")]
    sweeper = Recorded(tmp_path, jobs, {"key": KEY, "points": [0.01, 0.1]})
    sweeper.start = "???"
    sweeper.sweep([])
    assert [job[-1] for _, job in sweeper.ran] == [f"{KEY}={v}" for v in (0.01, 0.1, 0.01, 0.01)]


def test_without_a_key_nothing_is_tried(tmp_path: Path) -> None:
    sweeper = Recorded(tmp_path, jobs_with("method=lors"), {"key": None})
    sweeper.sweep([])
    assert [job for _, job in sweeper.ran] == jobs_with("method=lors")


def test_a_row_is_a_job_without_seed_and_chosen_key() -> None:
    assert row_of(["seed=1", "method=lors", f"{KEY}=0.1"], KEY) == ("method=lors",)


@pytest.mark.parametrize("name", slow_but_for(CLAIMS, ["dsnot"]))
def test_a_claim_states_what_it_compares(name: str) -> None:
    """Each side is a row, schedule or method that the sweep has; what stands beside exists."""
    cfg = compose("run", [f"experiment=claims/{name}", f"name=claims/{name}"])
    assert (cfg.claim, cfg.rounding, cfg.evaluation.perplexity.windows) == (
        name,
        "exact_budget",
        32,
    )
    content = OmegaConf.load(conf_folder() / "experiment" / "claims" / f"{name}.yaml")
    params = {str(key): str(value) for key, value in content.hydra.sweeper.params.items()}
    assert params["seed"] == "0,1,2"
    titles = {cell.title for cell in published_numbers()}
    statements = statements_of(content.hydra.callbacks.claim.statements)
    assert statements
    swept = {
        "row": params.get("arena", ""),
        "schedule": params.get("sparsity_schedule", ""),
        "method": "none,dsnot",
    }
    for statement in statements:
        for side in (statement.ours, statement.rival):
            for key in side.keys() & swept.keys():
                assert side[key] in swept[key].split(","), (statement.says, key)
        assert titles.issuperset(statement.beside)
        assert all(find_cell(identity) for identity in statement.published)


@pytest.mark.parametrize(
    "part",
    [
        ("lors", "arena=lora,spp"),  # neither of which has `method.init_samples`
        ("seft", "arena=lora_prune,spp"),
        ("losa", "arena=masked_lora,masked_lora_rmi"),
    ],
)
def test_a_part_without_the_keys_of_other_rows_composes(part: tuple[str, str]) -> None:
    lines = [f"experiment=claims/{part[0]}", "scale=tiny", "seed=0", part[1]]
    command = compose_command(lines, multirun=True)
    rows = part[1].removeprefix("arena=").split(",")
    assert [cfg.arena.row for cfg in command.configs] == rows


@pytest.mark.parametrize(
    ("variant", "scope", "adapts"),
    [("fixed", "active", False), ("evolve", "all", True), ("free", "all", False)],
)
def test_the_control_of_seft_stands_between_a_fixed_mask_and_free_growth(
    variant: str, scope: str, *, adapts: bool
) -> None:
    cfg = compose("run", ["experiment=seft_control", f"variant={variant}"])
    assert (cfg.method.grow_scope, cfg.method.adapt) == (scope, adapts)
    assert (cfg.claim, cfg.evaluation.perplexity.validation) == ("seft_control", True)
    content = OmegaConf.load(conf_folder() / "experiment" / "seft_control.yaml")
    for statement in statements_of(content.hydra.callbacks.claim.statements):
        sides = (statement.ours, statement.rival, statement.share_of)
        assert sides == tuple({"variant": name} for name in ("evolve", "fixed", "free"))


@pytest.mark.slow  # composes every row
@pytest.mark.parametrize("name", CLAIMS)
def test_every_row_of_a_claim_composes_and_may_begin(name: str) -> None:
    lines = [f"experiment=claims/{name}", "scale=tiny", "seed=0", "sparsity=0.6"]
    command = compose_command(lines, multirun=True)
    assert {cfg.model.name for cfg in command.configs} == {"tiny"}
    check_sweep(command.configs, command.lines)


@pytest.mark.slow  # a sweep of two cells, twice
def test_a_claim_runs_tiny_and_goes_on_from_what_is_there(tmp_path: Path) -> None:
    asked = [*sweep_files(put_workspace(tmp_path)), "experiment=claims/dsnot", "export=false"]
    asked += ["sparsity=0.6", "pruner=wanda", "seed=0", "model.name=made_up"]
    first = sparsemend_here(asked, tmp_path)
    assert first.returncode == 0, first.stderr + first.stdout
    folder = tmp_path / "multirun" / "claims" / "dsnot" / "made_up"
    assert "DSnoT lowers the perplexity" in (folder / "README.md").read_text()
    again = sparsemend_here([*asked[:-2], "seed=0,1", asked[-1]], tmp_path)
    assert again.returncode == 0, again.stderr + again.stdout
    assert again.stdout.count("finished earlier, not run again") == 1
    assert list(cells_of(folder)) == [0, 1]
