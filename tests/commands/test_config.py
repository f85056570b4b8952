import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

from sde_gen.commands import flags
from sde_gen.commands.config import ConfigError, RunConfig, merge, parse_seconds, read_config, resolve
from sde_gen.commands.recipes import RECIPES
from sde_gen.data import DATASETS


def test_every_data_set_has_a_recipe_that_resolves_and_reads_back() -> None:
    assert set(RECIPES) == set(DATASETS)
    for name in DATASETS:
        config = resolve({"data": {"name": name}})
        assert config.data.name == name
        assert resolve(yaml.safe_load(config.to_yaml())) == config


def test_the_committed_configurations_resolve() -> None:
    files = sorted((Path(__file__).parents[2] / "experiments" / "configs").glob("*.yaml"))
    assert files
    for file in files:
        assert isinstance(resolve(read_config(file)), RunConfig)


def test_layers_override_in_order() -> None:
    config = resolve({"training": {"steps": 7, "lr": 0.5}}, {"training": {"steps": 8}})
    assert (config.training.steps, config.training.lr) == (8, 0.5)
    assert config.training.batch == resolve({}).training.batch


def test_another_choice_drops_the_options_of_the_one_it_replaces() -> None:
    base = {"model": {"network": "mlp", "options": {"depth": 3}}, "sde": {"name": "vp", "settings": {"beta_max": 9.0}}}
    assert merge(base, {"model": {"network": "unet"}})["model"] == {"network": "unet"}
    assert merge(base, {"sde": {"name": "ve"}})["sde"] == {"name": "ve"}
    assert merge(base, {"model": {"network": "mlp"}})["model"] == base["model"]
    sampling = {"solver": "heun", "steps": 3, "grid": "cosine", "options": {"eta": 1.0}, "samples": 20}
    assert merge({"sampling": sampling}, {"sampling": {"solver": "dpm"}})["sampling"] == {"solver": "dpm", "samples": 20}
    assert merge({"sampling": sampling}, {"sampling": {"solver": "heun", "samples": 20}})["sampling"] == sampling


def test_the_command_line_is_one_layer(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("sampling: {solver: heun, steps: 3, grid: karras}")
    parser = argparse.ArgumentParser()
    flags.add_run_flags(parser)
    words = ["--config", str(tmp_path / "c.yaml"), "--steps", "5"]
    for flag in ("--solver dpm", "--set sampling.solver=dpm"):
        sampling = resolve(*flags.layers(parser.parse_args([*words, *flag.split()]))).sampling
        assert (sampling.solver, sampling.steps, sampling.grid) == ("dpm", 5, None), flag


def test_sampling_does_not_decide_which_network_comes_out() -> None:
    base = resolve({})
    assert resolve({"sampling": {"solver": "ode", "seed": 4}}).identity() == base.identity()
    assert resolve({"training": {"seed": 4}}).identity() != base.identity()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"data": {"name": "cats"}}, "unknown data 'cats'; choose from digits"),
        ({"training": {"stepz": 1}}, "unknown key training.stepz; choose from steps, batch"),
        ({"trainin": {}}, "unknown key trainin; choose from data, sde, model, training, sampling"),
        ({"sampling": {"sampels": 4}}, "unknown key sampling.sampels; choose from solver, options"),
        ({"training": {"lr": "fast"}}, "training.lr: .*got 'fast'"),
        ({"training": {"lr": -1}}, "training: lr must be positive and finite, got -1.0$"),
        ({"training": {"lr": float("nan")}}, "training.lr: .*finite number, got nan"),
        ({"training": {"steps": 1.5}}, "training.steps: .*integer"),
        ({"sampling": {"samples": 2}}, "sampling.samples: .*greater than or equal to 16, got 2"),
        ({"sampling": {"steps": 0}}, "sampling.steps: .*greater than or equal to 1, got 0"),
        ({"sampling": {"seed": -1}}, "sampling.seed"),
        ({"training": 3}, "training: .*got 3"),
        ({"sde": ["vp"]}, "sde: "),
        ({"data": 3}, "data"),
        ({"data": None}, "data: "),
    ],
)
def test_bad_values_are_one_line_that_names_the_key(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(asked)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "!!python/object/apply:os.system ['true']", "\x00"])
def test_a_bad_file_is_one_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml") as caught:
        read_config(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        read_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("1h", 3600), ("2.5", 2.5), (" 10 s ", 10)])
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-3s", "0", "3 days", "nan"])
def test_bad_times(text: str) -> None:
    with pytest.raises(ConfigError, match="a time must look like 30s"):
        parse_seconds(text)
