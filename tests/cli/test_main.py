"""The command: what it accepts, what it refuses by name, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from support.command_runs import python

from sparsemend.cli import main as cli
from sparsemend.config.compose import compose_command
from sparsemend.config.values import config_hash, plain
from sparsemend.errors import OverrideError

METHOD = "_target_: sparsemend.method.none.NoRepair\nstrength: 1\n"


def jobs(*lines: str, extra: Path | None = None, multirun: bool = False) -> list[DictConfig]:
    return compose_command(list(lines), extra=extra, multirun=multirun).configs


def refusal(*lines: str, multirun: bool = False) -> str:
    with pytest.raises(OverrideError) as caught:
        jobs(*lines, multirun=multirun)
    return str(caught.value)


def raising(error: BaseException) -> Callable[[DictConfig], float]:
    def run(cfg: DictConfig) -> float:
        raise error

    return run


def test_an_unknown_member_is_refused_with_the_nearest_names() -> None:
    message = refusal("method=masked_lor")
    assert "unknown method 'masked_lor'" in message
    assert "nearest: masked_lora" in message
    assert "--help" in message


def test_an_unknown_group_is_refused_with_the_nearest_name() -> None:
    message = refusal("methd=dsnot")
    assert "'methd'" in message
    assert "nearest: method\n" in message


def test_an_unknown_key_is_refused_with_the_nearest_name() -> None:
    assert "nearest: sparsity" in refusal("sparsty=0.5")


def test_an_unknown_key_inside_a_group_is_refused_with_all_keys_of_that_group() -> None:
    message = refusal("method.max_stps=3")
    assert "nearest: method.max_steps\n" in message
    assert "all keys of method: " in message
    assert "method.learning_rate" in message


def test_a_key_of_another_method_is_refused() -> None:
    assert "'method.rank'" in refusal("method=dsnot", "method.rank=4")


def test_a_key_that_lacks_its_group_is_refused_with_the_whole_key() -> None:
    assert "nearest: method.max_steps\n" in refusal("max_steps=3")


def test_a_key_that_lacks_its_member_is_refused_with_that_of_its_own_group_first() -> None:
    assert "nearest: logger.wandb.mode, " in refusal("logger=wandb", "logger.mode=offline")


def test_a_folder_of_configs_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "größe, it's [a] \\ name"
    (folder / "method").mkdir(parents=True)
    (folder / "method" / "mine.yaml").write_text("_target_: own.Mine\nstrength: 1\n")
    assert jobs("method=mine", extra=folder)[0].method.strength == 1


def test_an_unknown_experiment_is_refused_though_the_group_is_optional() -> None:
    assert "nearest: pretrain_tiny" in refusal("experiment=pretrain_tny")


def test_an_unknown_table_or_paper_of_an_experiment_is_refused_with_the_nearest() -> None:
    assert "nearest: table1, " in refusal("experiment=dsnot/tabel1")
    assert "nearest: dsnot/table1, " in refusal("experiment=dsnt/table1")


def test_an_unknown_member_is_refused_when_added_with_a_plus() -> None:
    assert "unknown experiment 'foo'" in refusal("+experiment=foo")


def test_the_text_of_instructions_is_chosen_by_its_place() -> None:
    cfg = jobs("data=alpaca_gpt4", "data@data.text=python_docs", "data.calibration_samples=7")[0]
    assert (cfg.data.name, cfg.data.text.name) == ("alpaca_gpt4", "python_docs")
    assert cfg.data.text.calibration_samples == 7


def test_an_unknown_text_of_instructions_is_refused_with_the_nearest_names() -> None:
    message = refusal("data=alpaca_gpt4", "data@data.text=python_dcs")
    assert "unknown data 'python_dcs'" in message
    assert "nearest: python_docs" in message


def test_an_unknown_key_of_the_text_is_refused_with_the_nearest_name() -> None:
    message = refusal("data=alpaca_gpt4", "data.text.train_document=3")
    assert "nearest: data.text.train_documents\n" in message
    assert "all keys of data.text: data.text.bos, data.text.calibration_samples, " in message


def test_an_unknown_key_of_another_text_is_refused_with_the_nearest_name() -> None:
    message = refusal("data=gsm8k", "data@data.text=text", "data.text.trian=a.txt")
    assert "nearest: data.text.train\n" in message


def test_a_misspelt_place_of_the_text_is_refused() -> None:
    assert "data@data.txt" in refusal("data=gsm8k", "data@data.txt=text")


def test_deleting_an_unknown_key_is_refused() -> None:
    assert "nearest: method.rank" in refusal("~method.rnk")


def test_an_unknown_member_in_a_list_is_refused() -> None:
    assert "'perplexty'" in refusal("evaluation=[perplexty]")


@pytest.mark.parametrize("line", ["debug=null", "method=null", "method=", "evaluation=[null]"])
def test_a_choice_that_names_no_member_is_refused_with_the_members(line: str) -> None:
    group = line.partition("=")[0]
    message = refusal(line)
    assert message.startswith(f"{line} names no {group}; leave {group} out for its default")
    assert message.endswith({"debug": "fast", "method": "spp", "evaluation": "zero_shot"}[group])
    assert "\n" not in message


def test_a_list_of_known_members_is_accepted() -> None:
    assert list(jobs("evaluation=[perplexity]")[0].evaluation) == ["perplexity"]


def test_a_misspelt_hydra_key_is_refused_with_the_nearest_name() -> None:
    assert "nearest: hydra.run.dir" in refusal("hydra.run.dr=out")


def test_an_unknown_launcher_is_refused_with_the_nearest_name() -> None:
    assert "nearest: joblib" in refusal("hydra/launcher=jblib")


def test_known_hydra_overrides_are_accepted() -> None:
    assert len(jobs("hydra.run.dir=out", "hydra/launcher=joblib")) == 1


def test_every_choice_of_a_sweep_is_checked_by_name() -> None:
    assert "'dsnt'" in refusal("method=none,dsnt", "sparsity=0.5,0.6", multirun=True)


def test_a_key_of_one_swept_member_is_left_out_of_the_other_cells() -> None:
    configs = jobs("method=none,lors", "method.rank=4,8", "sparsity=0.5", multirun=True)
    assert [cfg.method.get("rank") for cfg in configs] == [None, 4, 8]  # none has one cell
    assert configs[0] == jobs("method=none", "sparsity=0.5")[0]
    assert configs[2] == jobs("method=lors", "method.rank=8", "sparsity=0.5")[0]


def test_a_key_of_one_swept_logger_is_left_out_of_the_other_cells() -> None:
    configs = jobs("logger=none,wandb", "logger.wandb.mode=offline", multirun=True)
    modes = [OmegaConf.select(cfg, "logger.wandb.mode") for cfg in configs]
    assert modes == [None, "offline"]


def test_a_key_that_no_swept_member_has_is_refused_with_the_members_that_have_it() -> None:
    message = refusal("method=none,dsnot", "method.max_rank=4", multirun=True)
    assert "unknown key 'method.max_rank'" in message
    assert "max_rank is a key of method=losa\n" in message


def test_a_key_of_other_loggers_is_refused_with_those_that_have_it() -> None:
    assert "wandb.mode is a key of logger=wandb\n" in refusal(
        "logger=csv", "logger.wandb.mode=offline"
    )


def test_every_job_of_a_long_sweep_is_composed_before_the_first() -> None:
    configs = jobs("method=none,dsnot", "seed=range(33)", multirun=True)
    assert [cfg.seed for cfg in configs] == 2 * list(range(33))
    assert [cfg.method.get("max_cycles") for cfg in configs[32:34]] == [None, 50]


@pytest.mark.parametrize("path", ["/data/llama", "./llama", "facebook/opt-125m"])
def test_a_model_given_by_its_path_is_refused_with_the_way_to_give_it(path: str) -> None:
    message = refusal(f"model={path}")
    assert f"for a folder or hub id: model=local model.path={path}\n" in message
    assert "llama2_7b" not in message


def test_an_override_that_cannot_be_read_is_refused_without_a_link() -> None:
    message = refusal("sparsity")
    assert "an override reads key=value" in message
    assert "http" not in message


def test_a_sweep_composes_every_combination() -> None:
    configs = jobs("method=none,dsnot", "sparsity=0.5,0.6", multirun=True)
    assert [(c.method._target_.split(".")[-2], c.sparsity) for c in configs] == [
        ("none", 0.5),
        ("none", 0.6),
        ("dsnot", 0.5),
        ("dsnot", 0.6),
    ]


def test_an_interval_of_a_search_is_accepted() -> None:
    assert jobs("sparsity=interval(0.5,0.7)", multirun=True)[0].sparsity == 0.5


def test_several_values_without_the_sweep_flag_are_refused_with_the_flag() -> None:
    assert "--multirun" in refusal("method=none,dsnot")


def test_a_new_key_is_accepted_with_a_plus() -> None:
    assert jobs("+note=hello", "+model.architecture.rope_theta=1")[0].note == "hello"


@pytest.mark.parametrize("pattern", ["2:4", "mixed:8"])
def test_a_pattern_arrives_from_the_command_line_as_it_was_written(pattern: str) -> None:
    assert jobs(f"pattern={pattern}")[0].pattern == pattern


def test_a_common_difference_arrives_as_a_number() -> None:
    cfg = jobs("sparsity_schedule=atp", "sparsity_schedule.common_difference=0.05")[0]
    assert cfg.sparsity_schedule.common_difference == 0.05


def test_a_member_from_an_extra_config_folder_is_known(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(METHOD)
    assert jobs("method=mine", "method.strength=3", extra=tmp_path)[0].method.strength == 3


def test_a_member_from_the_search_path_is_known(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(METHOD)
    assert jobs("method=mine", f"hydra.searchpath=[{tmp_path}]")[0].method.strength == 1


def test_an_extra_config_folder_and_a_search_path_count_both(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name / "method").mkdir(parents=True)
        (tmp_path / name / "method" / f"{name}.yaml").write_text(METHOD)
    search = f"hydra.searchpath=[{tmp_path / 'first'}]"
    assert len(jobs("method=first", search, extra=tmp_path / "second")) == 1
    assert len(jobs("method=second", search, extra=tmp_path / "second")) == 1


def test_a_value_of_the_wrong_type_in_a_users_own_section_is_refused(
    command, tmp_path, capsys
) -> None:
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "mine.yaml").write_text(METHOD)
    search = f"hydra.searchpath=[{tmp_path / 'mine'}]"
    code, seen = command(search, "method=mine", "method.strength=much")
    assert (code, seen) == (1, [])
    assert "method.strength=much is not an integer; set for example" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_job_holds_a_users_own_section_to_its_types(command, tmp_path, capsys) -> None:
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "mine.yaml").write_text(METHOD)
    search = f"hydra.searchpath=[{tmp_path / 'mine'}]"
    command("-m", search, "method=mine", "method.strength=1,a", "hydra.sweep.dir=out")
    assert "method.strength=a is not an integer" in capsys.readouterr().out


def test_the_command_hands_the_composed_config_to_the_run(command) -> None:
    code, seen = command("sparsity=0.5", "hydra.run.dir=out")
    assert code == 0
    assert seen[0].sparsity == 0.5


def test_a_sweep_runs_one_job_per_combination(command) -> None:
    code, seen = command("-m", "sparsity=0.5,0.6", "hydra.sweep.dir=out")
    assert code == 0
    assert [cfg.sparsity for cfg in seen] == [0.5, 0.6]


def test_a_sweep_takes_a_key_that_only_one_of_its_members_has(command, tmp_path, capsys) -> None:
    # of dsnot alone: neither none has it nor the default, which Hydra begins with
    lines = ("method=none,dsnot", "method.max_cycles=3", "hardware.threads=1")
    code, seen = command("-m", *lines, "hydra.sweep.dir=out")
    assert (code, [cfg.method.get("max_cycles") for cfg in seen]) == (0, [None, 3])
    said = " ".join(capsys.readouterr().out.split())
    notice = "method.max_cycles is left out of the cells of method=none, which have no such key"
    assert said.count(notice) == 1
    assert "cell 0: method=none " in said
    assert "cell 1: method=dsnot method.max_cycles=3 " in said
    assert "hardware.threads" not in said
    _, seen = command("-m", *lines, "hydra.sweep.dir=out")
    assert seen == []  # the same cells are known again
    result = json.loads((tmp_path / "out/0/result.json").read_text())
    assert result["config_hash"] == config_hash(plain(jobs("method=none", *lines[2:])[0]))


def test_an_unknown_name_ends_with_code_2_and_leaves_no_folder(command, tmp_path, capsys) -> None:
    code, seen = command("method=masked_lor")
    assert (code, seen, list(tmp_path.iterdir())) == (2, [], [])
    assert "error: unknown method 'masked_lor'" in capsys.readouterr().err


def test_a_refused_value_ends_with_code_1_and_leaves_no_folder(
    command, tmp_path, capsys, monkeypatch
) -> None:
    def refuse(cfg: DictConfig) -> None:
        raise ValueError(f"sparsity {cfg.sparsity} cannot work")

    monkeypatch.setattr(cli.preflight, "check", refuse)
    code, seen = command("sparsity=0.2")
    assert (code, seen, list(tmp_path.iterdir())) == (1, [], [])
    assert "error: sparsity 0.2 cannot work" in capsys.readouterr().err


@pytest.mark.parametrize("lines", [["hydra.run.dir=file/out"], ["-m", "hydra.sweep.dir=file/out"]])
def test_a_folder_that_cannot_be_made_is_refused_in_one_line(
    lines: list[str], command, tmp_path, capsys
) -> None:
    (tmp_path / "file").touch()
    code, seen = command(*lines)
    printed = capsys.readouterr().err.splitlines()
    assert (code, seen, len(printed)) == (1, [], 1)
    assert printed[0].startswith("error: the run cannot write file/out: ")


def test_a_job_of_a_sweep_checks_its_own_values(command, monkeypatch) -> None:
    checked: list[float] = []
    monkeypatch.setattr(cli.preflight, "check", lambda cfg: checked.append(cfg.sparsity))
    command("-m", "sparsity=0.5,0.6", "hydra.sweep.dir=out")
    # the sweep checks until a job can begin, then each job itself
    assert checked == [0.5, 0.5, 0.6]


def test_a_users_error_inside_a_run_is_one_line_with_the_traceback_in_the_log(
    command, tmp_path, capsys
) -> None:
    code, _ = command("hydra.run.dir=out", run=raising(ValueError("text too short")))
    printed = capsys.readouterr().err
    assert code == 1
    assert "error: text too short" in printed
    assert "Traceback" not in printed
    assert "Traceback" in (tmp_path / "out" / "run.log").read_text()


def test_a_users_error_inside_a_sweep_is_one_line_too(command, tmp_path, capsys) -> None:
    code, _ = command("-m", "hydra.sweep.dir=out", run=raising(ValueError("text too short")))
    printed = capsys.readouterr()
    assert code == 1
    assert "cell 0 failed: text too short" in printed.out
    assert "Traceback" not in printed.out + printed.err
    error = json.loads((tmp_path / "out" / "0" / "result.json").read_text())["error"]
    assert (error["type"], error["message"]) == ("ValueError", "text too short")
    assert "Traceback" in error["traceback"]


def test_an_unexpected_error_inside_a_run_shows_its_traceback(command, capsys) -> None:
    code, _ = command("hydra.run.dir=out", run=raising(RuntimeError("a bug")))
    assert code == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_error_was_asked_for_and_propagates(command, monkeypatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="text too short"):
        command("hydra.run.dir=out", run=raising(ValueError("text too short")))


def test_an_interrupt_ends_with_code_130_and_says_how_to_go_on(command, capsys) -> None:
    assert command("hydra.run.dir=out", run=raising(KeyboardInterrupt()))[0] == 130
    assert "interrupted; the same command with resume=auto goes on" in capsys.readouterr().err


def test_an_interrupt_of_a_sweep_says_how_to_go_on(command, capsys) -> None:
    lines = ("-m", "sparsity=0.5,0.6", "hydra.sweep.dir=out")
    code, seen = command(*lines, run=raising(KeyboardInterrupt()))
    assert (code, len(seen)) == (130, 1)
    printed = capsys.readouterr()
    assert "interrupted; the same command with resume=auto goes on" in printed.err
    assert "cell 0 missing: the sweep ended before it could write a result" in printed.out


def test_an_interrupt_that_lightning_turned_into_an_exit_ends_with_code_130(command) -> None:
    def run(cfg: DictConfig) -> float:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert command("hydra.run.dir=out", run=run)[0] == 130


def test_the_first_sigterm_ends_with_code_143_and_says_how_to_go_on(command, capsys) -> None:
    went_on = []

    def run(cfg: DictConfig) -> float:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does while the result is written
            went_on.append(cfg)
        return 1.0

    assert command("hydra.run.dir=out", run=run) == (143, went_on)
    assert len(went_on) == 1
    assert "interrupted; the same command with resume=auto goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_that_the_process_has_for_sigterm_stays(command) -> None:
    seen = []

    def run(cfg: DictConfig) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        assert command("hydra.run.dir=out", run=run)[0] == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_a_sigterm_that_lightning_turned_into_an_exit_ends_with_code_143(command) -> None:
    assert command("hydra.run.dir=out", run=raising(SIGTERMException()))[0] == 143


def test_an_export_without_room_is_refused_before_a_folder_is_made(
    command, capsys, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**21))
    assert command("export=true", "hydra.run.dir=out") == (1, [])
    assert "error: export=true writes 0.0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    code, seen = command("-m", "export=false,true", "cache=off", "hydra.sweep.dir=cells")
    assert (code, [cfg.export for cfg in seen]) == (1, [False])


def test_help_says_what_the_command_does_and_lists_groups_and_overrides(command, capsys) -> None:
    code, _ = command("--help")
    text = capsys.readouterr().out
    assert code == 0
    assert text.startswith("sparsemend: prune a language model, mend what the pruning broke")
    for example in ("method=dsnot", "pattern=2:4", "hydra.run.dir=out", "sparsity=0.7"):
        assert example in text
    assert "\nmethod: dsnot, " in text


def test_the_real_command_refuses_without_importing_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sparsemend.cli import main as cli\n"
        "sys.argv = ['sparsemend', 'sparsity=1.2']\n"
        "try:\n    cli.main()\n"
        "finally:\n"
        "    heavy = {'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules)\n"
        "    print('imported', sorted(heavy))\n"
    )
    done = python(["-c", code], tmp_path)
    assert done.returncode == 1
    assert done.stdout == "imported []\n"
    assert done.stderr == "error: sparsity=1.2 is not in [0, 1); set for example sparsity=0.6\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("line", ["seed=a", "method.max_steps=abc"])
def test_the_real_command_refuses_a_wrong_type_before_torch_and_a_folder(
    line: str, tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom sparsemend.cli import main as cli\n"
        f"sys.argv = ['sparsemend', '{line}']\n"
        "try:\n    cli.main()\n"
        "finally:\n"
        "    heavy = {'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules)\n"
        "    print('imported', sorted(heavy))\n"
    )
    done = python(["-c", code], tmp_path)
    assert (done.returncode, done.stdout) == (1, "imported []\n")
    assert done.stderr.startswith(f"error: {line} is not an integer of at least ")
    assert list(tmp_path.iterdir()) == []


def test_the_real_command_refuses_a_line_of_instructions_without_importing_torch(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "Add 1 2.", "input": "", "respons": "3"}\n')
    code = (
        "import sys\nfrom sparsemend.cli import main as cli\n"
        "sys.argv = ['sparsemend', 'data=instructions', 'data.train=./a.jsonl']\n"
        "try:\n    cli.main()\n"
        "finally:\n"
        "    heavy = {'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules)\n"
        "    print('imported', sorted(heavy))\n"
    )
    done = python(["-c", code], tmp_path)
    assert done.returncode == 1
    assert done.stdout == "imported []\n"
    message = "error: data.train=a.jsonl line 1 has no field output "
    assert done.stderr.startswith(f"{message}(fields: instruction, input, respons); ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_the_real_command_refuses_an_unknown_method_with_code_2(tmp_path: Path) -> None:
    done = python(["-m", "sparsemend.cli.main", "method=masked_lor"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown method 'masked_lor'")
    assert list(tmp_path.iterdir()) == []


def test_the_config_of_a_sweep_is_refused_in_one_line(command, capsys) -> None:
    code, seen = command("-m", "sparsity=0.5,0.6", "--cfg", "job")
    assert (code, seen) == (2, [])
    assert "show one job; leave -m out" in " ".join(capsys.readouterr().err.split())
