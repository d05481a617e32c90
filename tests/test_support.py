import pytest
from hydra import compose as compose_by_hydra
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError
from support.configs import compose

from sparsemend.config.locations import conf_folder

LINES = [
    [],
    ["method=seft", "pruner=sparsegpt", "sparsity=0.6", "method.budget.density=0.02"],
    ["data=instructions", "data@data.text=text", "data.train=[a.jsonl,b.jsonl]"],
    ["evaluation=[perplexity,zero_shot]", "evaluation.zero_shot.tasks={piqa: 0}"],
    ["experiment=losa_released", "method.max_steps=3"],
    ["+search=atp_common_difference", "pattern='2:4'", "++method.extra=1", "~cache.models"],
]


def by_hydra(lines: list[str]) -> DictConfig:
    with initialize_config_dir(str(conf_folder())):
        return compose_by_hydra("run", lines)


@pytest.mark.parametrize("lines", LINES, ids=" ".join)
def test_the_cached_compose_gives_what_hydra_gives(lines: list[str]) -> None:
    for _ in range(2):  # the second comes from the cache
        cfg = compose("run", lines)
        assert OmegaConf.to_yaml(cfg) == OmegaConf.to_yaml(by_hydra(lines))
        cfg.sparsity = 0.123


def test_the_cached_compose_refuses_an_unknown_key() -> None:
    compose("run")
    with pytest.raises(HydraException, match=r"Could not override 'sparsitty'"):
        compose("run", ["sparsitty=0.5"])
    with pytest.raises(ConfigAttributeError):
        _ = compose("run").sparsitty
