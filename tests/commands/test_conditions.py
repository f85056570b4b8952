"""Conditions from the user's file through `sde-gen run` and `sde-gen sample` into the files of samples."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from toys import TINY_RUN, Command

import sde_gen
from sde_gen.commands import sample as command
from sde_gen.commands.config import ConfigError, DataConfig, RunConfig, merge, resolve
from sde_gen.commands.run_data import check, config_of_run, load_data
from sde_gen.commands.sample import sample_to_files
from sde_gen.commands.sample_job import SampleSettings, plan_job
from sde_gen.data.write import DataDescription, write_samples
from sde_gen.models.score import ScoreModel
from sde_gen.sampling.fitted import FittedGrid, law_of
from sde_gen.training import build_model, load, save

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")
WORDS = ["north", "south coast", "west"]
SPECS: dict[str, Any] = {
    "label": {"kind": "label", "classes": 2},
    "site": {"kind": "label", "classes": 3, "names": WORDS},
    "age": {"kind": "numbers", "size": 1, "mean": [50.0], "std": [17.0]},
    "pair": {"kind": "numbers", "size": 2},
    "steps": {"kind": "sequence", "features": 1, "length": 6},
    "low": {"kind": "map", "channels": 1, "grid": [3, 3]},
}
ABOUT: dict[str, Any] = {"name": "x", "dtype": "float32", "levels": None, "whole": [False], "value_range": [-1.0, 1.0]}


def saved(directory: Path, names: tuple[str, ...] = tuple(SPECS), shape: tuple[int, ...] = (1, 6, 6)) -> ScoreModel:
    """A run directory with a network of random weights that is told `names`, and no more."""
    network, options = ("unet", {"width": 8, "multipliers": [1], "attention": [0]}) if len(shape) > 1 else ("mlp", {"width": 8, "depth": 1})
    conditions = {name: SPECS[name] for name in names}
    model = build_model(torch.randn(50, *shape) * 3 + 1, network=network, network_options=options, conditions=conditions).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    about = ABOUT | {"shape": list(shape), "whole": [False] * (shape[0] if len(shape) == 1 else 1)}
    about |= {"label_names": ["a", "b"], "label_counts": [30, 10]} if "label" in names else {}
    save(model, directory / "checkpoint", extra={"data_description": about})
    return model


def drawn(run: Path, out: Path, *cond: str, lines: list[str] | None = None, **settings: Any) -> dict[str, np.ndarray]:
    """The arrays of an .npz of seven samples in three parts."""
    chosen = SampleSettings(7, "ddim", 4, batch=3, cond=cond, **settings)
    sample_to_files(run, str(out), chosen, CPU, True, False, (lines if lines is not None else []).append)
    with np.load(out) as arrays:
        return dict(arrays)


def direct(model: ScoreModel, **cond: Any) -> np.ndarray:
    given = {name: torch.as_tensor(value) for name, value in cond.items()}
    return sde_gen.sample(model, (7, 1, 6, 6), "ddim", steps=4, cond=given, batch_size=3, progress=False).x.numpy()


def test_every_kind_of_condition_reaches_the_network_and_the_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = saved(run)
    low, one = RNG.normal(size=(7, 1, 3, 3)), RNG.normal(size=(1, 3, 3)).astype(np.float32)
    np.save(tmp_path / "low.npy", low)
    np.save(tmp_path / "one.npy", one)
    np.save(tmp_path / "ages.npy", np.arange(7) * 10)
    np.save(tmp_path / "sites.npy", np.array([*WORDS, *WORDS, "west"]))
    Image.fromarray(np.arange(9, dtype=np.uint8).reshape(3, 3)).save(tmp_path / "low.png")
    picture = torch.arange(9.0).reshape(1, 1, 3, 3).expand(7, 1, 3, 3)
    same: list[tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = [
        (("age=50", "label=b"), {"age": torch.full((7,), 50.0), "label": torch.ones(7, dtype=torch.int64)}, {"age": [50.0] * 7}),
        (("site=south coast", "label="), {"site": torch.ones(7, dtype=torch.int64)}, {"site": [WORDS[1]] * 7}),
        (("pair=2.5,nan", "label="), {"pair": torch.tensor([[2.5, torch.nan]]).expand(7, 2)}, {"pair": [[2.5, np.nan]] * 7}),
        (("steps=1,2,3", "label="), {"steps": torch.tensor([1.0, 2, 3])[None, :, None].expand(7, 3, 1)}, {"steps": [[[1], [2], [3]]] * 7}),
        ((f"low={tmp_path}/low.npy", "label="), {"low": low}, {"low": low}),
        ((f"low={tmp_path}/one.npy", "label="), {"low": np.repeat(one[None], 7, 0)}, {"low": np.repeat(one[None], 7, 0)}),
        ((f"low={tmp_path}/low.png", "label="), {"low": picture}, {"low": picture}),
        ((f"age={tmp_path}/ages.npy", "label="), {"age": torch.arange(7) * 10.0}, {"age": np.arange(7) * 10}),
        ((f"site={tmp_path}/sites.npy", "label="), {"site": torch.tensor([0, 1, 2, 0, 1, 2, 2])}, {"site": [*WORDS, *WORDS, "west"]}),
    ]
    nothing = direct(model)
    for texts, cond, written in same:
        found = drawn(run, tmp_path / "s.npz", *texts)
        np.testing.assert_array_equal(found["x"], direct(model, **cond), err_msg=str(texts))
        assert not np.allclose(found["x"], nothing), texts
        assert set(found) == {"x", *written} | ({"label"} if "label=b" in texts else set())
        for name, value in written.items():
            np.testing.assert_array_equal(found[name], np.asarray(value), err_msg=name)
    lines: list[str] = []
    found = drawn(run, tmp_path / "s.npz", "label=", lines=lines)
    np.testing.assert_array_equal(found["x"], nothing)
    assert set(found) == {"x"}
    assert "condition label, site, age, pair, steps, low are not given: samples are of all values of them" in lines


def test_labels_come_in_their_shares_beside_other_conditions_and_guidance_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = saved(run)
    lines: list[str] = []
    found = drawn(run, tmp_path / "s.npz", "age=30", lines=lines, guidance=2.5, rule="apg")
    classes = torch.from_numpy((found["label"] == "b").astype(np.int64))
    assert 0 < int(classes.sum()) < 4 and float(found["guidance"]) == 2.5 and str(found["rule"]) == "apg"
    guided = sde_gen.guide(model, 2.5, rule="apg")
    cond = {"age": torch.full((7,), 30.0), "label": classes}
    expected = sde_gen.sample(guided, (7, 1, 6, 6), "ddim", steps=4, cond=cond, batch_size=3, progress=False).x
    np.testing.assert_allclose(found["x"], expected, rtol=2e-5, atol=2e-5)
    assert "condition age=30" in lines and "labels    2 classes in the shares of the training data" in lines
    assert any(line.startswith("guidance  strength 2.5 by rule apg") for line in lines)
    assert "condition site, pair, steps, low are not given: samples are of all values of them" in lines
    by_shares = drawn(run, tmp_path / "s.npz", "age=30")
    assert set(by_shares) == {"x", "label", "age"} and not np.allclose(by_shares["x"], found["x"])
    settings = plan_job(run, "t.npz", SampleSettings(7, cond=("age=30",), guidance=2.0), CPU).settings
    assert settings["cond"] == {"age": "30"} and settings["guidance"] == 2.0 and settings["rule"] == "cfg"
    npy = SampleSettings(7, "ddim", 2, cond=("age=30",), guidance=2.0)
    sample_to_files(run, str(tmp_path / "s.npy"), npy, CPU, True, False, lines.append)
    assert "condition age: npy has no place for it; an .npz file keeps all" in lines and any(
        line.endswith("; an .npz file keeps both") for line in lines
    )


def test_a_job_goes_on_only_with_the_same_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "run")
    file = tmp_path / "ages.npy"
    np.save(file, np.arange(7.0))
    draw, counted = command._shard, []

    def killed(job: Any, first: int, last: int, common: Any) -> Any:
        counted.append(first)
        if len(counted) == 2:
            raise KeyboardInterrupt
        return draw(job, first, last, common)

    monkeypatch.setattr(command, "_shard", killed)
    texts = (f"age={file}", "label=a")
    with pytest.raises(KeyboardInterrupt):
        drawn(tmp_path / "run", tmp_path / "s.npz", *texts)
    with pytest.raises(ConfigError, match="holds the beginning of other samples"):
        drawn(tmp_path / "run", tmp_path / "s.npz", "age=3", "label=a")
    np.save(file, np.arange(7.0) + 1)
    with pytest.raises(ConfigError, match="holds the beginning of other samples"):
        drawn(tmp_path / "run", tmp_path / "s.npz", *texts)
    np.save(file, np.arange(7.0))
    drawn(tmp_path / "run", tmp_path / "s.npz", *texts)
    assert counted == [0, 3, 3, 6]


def test_a_grid_that_is_fitted_with_all_conditions_is_used_whatever_is_given(tmp_path: Path) -> None:
    model = saved(tmp_path / "run", ("label", "age"))
    fitted = FittedGrid("dpm", 3, (0.9, 0.5, 0.2, 0.1), conditions=("age", "label"), law=law_of(model))
    model.fitted[fitted.key] = fitted
    about = ABOUT | {"shape": [1, 6, 6], "label_names": ["a", "b"], "label_counts": [30, 10]}
    save(model, tmp_path / "run" / "checkpoint", extra={"data_description": about})
    for cond in ((), ("age=3",), ("label=",)):
        job = plan_job(tmp_path / "run", "s.npz", SampleSettings(5, "dpm", 3, "fitted", cond=cond), CPU)
        assert job.settings["fitted"]["times"] == [0.9, 0.5, 0.2, 0.1]
        given = job.conditions(0, 5)
        assert given is not None and sde_gen.sample(job.model, (5, 1, 6, 6), "dpm", 3, cond=given, grid="fitted", progress=False).fitted
    config = {"sampling": {"solver": "dpm", "steps": 3, "grid": "fitted"}, "data": {"name": "gone.npy"}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    guided = plan_job(tmp_path / "run", "s.npz", SampleSettings(5, cond=("age=3",), guidance=2.0), CPU)
    assert guided.settings["grid"] is None, "the run's grid is that of the network without guidance"


def test_tables_get_their_columns_back(tmp_path: Path) -> None:
    about = DataDescription(
        "t.csv", (3,), "float32", None, (False, True, False), (-5.0, 20.0), ("a", "n", "b"), ("sex", 1), ("f", "m"), (1, 1)
    )
    about = DataDescription.from_config(
        json.loads(json.dumps(about.to_config() | {"cond_columns": [["where", "SITE COLUMN", 4], ["age", "age", 0]]}))
    )
    values = np.array([[0.5, 3, 1.5], [1.5, 4, 2.5], [2.5, 5, 3.5]], np.float32)
    beside = {
        "where": lambda first, last: np.array(WORDS)[first:last],
        "age": lambda first, last: np.array([50.0, np.nan, 2.25])[first:last],
    }
    parts = [(values[:2], np.array([0, 1])), (values[2:], np.array([1]))]
    for labelled, columns, expected in (
        (True, beside, ["age,sex,a,n,SITE COLUMN,b", "50,f,0.5,3,north,1.5", ",m,1.5,4,south coast,2.5", "2.25,m,2.5,5,west,3.5"]),
        (False, {}, ["age,a,n,SITE COLUMN,b", ",0.5,3,,1.5", ",1.5,4,,2.5", ",2.5,5,,3.5"]),
    ):
        write_samples(tmp_path / "s.csv", "csv", about, 3, lambda: iter(parts), labelled, columns)
        assert (tmp_path / "s.csv").read_text().splitlines() == expected
    old = asdict(about)
    del old["cond_columns"]
    old["label_column"] = ["sex", 3]
    assert DataDescription.from_config(json.loads(json.dumps(old))).cond_columns == (), "of an earlier version"
    for wrong in ([["where", "x", 9]], [["where", "x", 1]], [["where"]], [3], "x"):
        with pytest.raises(ValueError, match="describes no data"):
            DataDescription.from_config(json.loads(json.dumps(about.to_config() | {"cond_columns": wrong})))


def test_from_a_table_to_a_table(sde_gen_command: Command, tmp_path: Path) -> None:
    site = np.sort(RNG.integers(3, size=3000))  # sorted by class
    rows = [
        f"{RNG.normal()},{'' if k % 10 == 3 else 20 + k % 60},{'NA' if k % 50 == 7 else WORDS[s]},{s + RNG.normal()},{'fm'[k % 2]}"
        for k, s in enumerate(site)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["a,t,SITE COLUMN,b,sex", *rows]))
    base = ["run", *TINY_RUN, "--solver", "ddim", "--data", "t.csv", "--label-column", "sex", "--labels"]
    told = ["--condition", "age=t", "--condition", "site=SITE COLUMN"]
    drop = ["--drop", "age=0.2", "--drop", "site=0.3", "--drop", "label=0.1"]
    code, out, err = sde_gen_command(*base, *told, *drop)
    assert (code, err) == (0, []), err
    run = tmp_path / "runs" / "t.csv-vp"
    assert any("condition 'site': 3 classes (north, south coast, west); not known of" in line for line in out)
    found = yaml.safe_load((run / "config.yaml").read_text())
    assert found["data"]["conditions"] == ["age=t", "site=SITE COLUMN"] and found["training"]["drop"] == {
        "age": 0.2,
        "site": 0.3,
        "label": 0.1,
    }
    with np.load(run / "solvers" / "ddim" / "samples.npz") as arrays:
        assert set(arrays) == {"x", "label", "age", "site"} and set(arrays["site"]) <= {*WORDS, ""} and arrays["age"].shape == (32,)
    encoders = load(run / "checkpoint").encoders
    assert {name: encoder.kind for name, encoder in encoders.items()} == {"label": "label", "age": "numbers", "site": "label"}
    code, out, err = sde_gen_command(*base, *told[2:], *told[:2], *drop)
    assert code == 2 and len(err) == 1 and "holds a network of other settings" in err[0] and "data.conditions" in err[0]

    arguments = ("sample", "--run", str(run), "--samples", "20", "--no-progress", "--out")
    code, out, err = sde_gen_command(*arguments, "s.csv", "--cond", "age=50", "--cond", "site=south coast", "--guidance", "2")
    assert (code, err) == (0, []), err
    with open("s.csv", newline="") as file:
        header, *lines = list(csv.reader(file))
    assert header == ["a", "t", "SITE COLUMN", "b", "sex"] and len(lines) == 20
    assert all(row[1:3] == ["50", "south coast"] and row[4] in "fm" for row in lines)
    code, out, err = sde_gen_command(*arguments, "s2.csv", "--cond", "site=west")
    assert "condition age is not given: samples are of all values" in out
    with open("s2.csv", newline="") as file:
        assert all(row[1:3] == ["", "west"] for row in list(csv.reader(file))[1:])

    for flags, message in (
        (["--condition", "t", "--condition", "site=2"], "a condition cannot be called 't'; --condition NAME=t gives it another name"),
        (["--condition", "rule=t", "--condition", "site=2"], "a condition cannot be called 'rule'"),
        (["--condition", "height"], "t.csv: no column 'height' for a condition; its columns are a, t, SITE COLUMN, b, sex"),
        (["--condition", "label=t"], "'label' is what the labels are called"),
        ([*told, "--condition-map", "maps"], "maps' is for images in a folder or archive"),
        ([*told, "--drop", "0.2", "--drop", "age=0.1"], "--drop takes one share for all conditions or one by the name of each"),
        ([*told, "--drop", "much"], "--drop takes a share in [0, 1), or NAME=SHARE, got 'much'"),
        ([*told, "--drop", "age=0.1", "--drop", "age=0.2"], "--drop is given twice for condition 'age'"),
        ([*told, "--drop", "height=0.1"], "drop names 'height'; the conditions are 'label', 'age', 'site'"),
        ([*told, "--drop", "1"], "training: drop must be in [0, 1)"),
        (["--set", "data.conditions={a: 1}"], "data.conditions"),
    ):
        code, out, err = sde_gen_command(*base, "--out", "new", *flags)
        assert code == 2 and len(err) == 1 and message in err[0] and not Path("new").exists(), (flags, err)


def test_a_column_that_is_the_same_everywhere_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n".join(["a,same,b", *(f"{k},5,{k % 7}" for k in range(100))]))
    config = resolve({"data": {"name": str(tmp_path / "t.csv"), "conditions": "same"}, "model": {"network": "mlp"}})
    data = load_data(config)
    assert any("condition 'same' is the same for all training items" in note for note in data.notes)
    assert list(check(config, data).encoders) == ["same"]


def test_maps_beside_a_folder_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(60):
        for folder, size in (("faces", 8), ("maps", 4), ("other", 4)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.full((size, size), k, np.uint8)).save(tmp_path / folder / f"{k}.png")
    monkeypatch.chdir(tmp_path)
    config = resolve({"data": {"name": "faces", "condition_map": "maps"}}, {"sampling": {"samples": 32}})
    data = load_data(config)
    model = check(config, data)
    assert model.encoders["map"].kind == "map" and model.encoders["map"].options["grid"] == [4, 4]
    here = config.anchored()
    assert here.data.relative_to == str(tmp_path) and config.identity() == here.identity()
    other = resolve({"data": {"name": "faces", "condition_map": "other"}})
    assert other.identity() != config.identity() and resolve({"data": {"name": "faces"}}).identity() != config.identity()
    assert config.identity()["data"]["condition_map"] == str(tmp_path / "maps")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(here.to_yaml())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_data(config_of_run(tmp_path / "run")).signature() == data.signature()
    absolute = RunConfig(data=DataConfig(name=str(tmp_path / "faces"), condition_map="maps"))
    assert absolute.anchored().data.relative_to == str(tmp_path / "elsewhere")
    assert "relative_to" not in merge({"relative_to": "there"}, {"condition_map": "maps"})


def test_bad_conditions_of_samples_are_one_line(sde_gen_command: Command, tmp_path: Path) -> None:
    saved(tmp_path / "run")
    saved(tmp_path / "plain", (), (3,))
    saved(tmp_path / "ages", ("age",), (3,))
    np.save(tmp_path / "five.npy", np.zeros(5))
    np.save(tmp_path / "wide.npy", np.zeros((4, 1, 5, 5)))
    np.save(tmp_path / "inf.npy", np.array([1.0, np.inf, 2, 3]))
    np.save(tmp_path / "words.npy", np.array(["north", "nowhere", "west", "west"]))
    with (tmp_path / "zip.npy").open("wb") as file:
        np.savez(file, a=1)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "big.png")
    cases = [
        (["--cond", "height=3"], "--cond height=3: no condition 'height'; this network takes label, site, age, pair, steps, low"),
        (["--run", "plain", "--cond", "age=3"], "no condition 'age'; this network was trained without conditions"),
        (["--cond", "age"], "--cond takes NAME=VALUE, as in age=50, got 'age'"),
        (["--cond", "age=3", "--cond", "age=4"], "condition 'age' is given twice"),
        (["--label", "a", "--cond", "label=b"], "condition 'label' is given twice"),
        (["--cond", "age=old"], "--cond age=old: a number, several separated by commas (nan: not known), or a .npy file is needed"),
        (["--cond", "age=1,2"], "condition 'age' must be numbers of shape (B, 1), got (1, 2)"),
        (["--cond", "pair=1"], "condition 'pair' must be numbers of shape (B, 2), got (1, 1)"),
        (["--cond", "pair=1,inf"], "condition 'pair' holds infinite values"),
        (["--cond", "steps=1,2,3,4,5,6,7"], "condition 'steps' has at most 6 places, got 7"),
        (["--cond", "low=1"], "--cond low=1: it is a map, which a .npy file or an image holds"),
        (["--cond", "low=big.png"], "condition 'low' must be a map of shape (B, 1, 3, 3), got (1, 1, 5, 5)"),
        (["--cond", "low=wide.npy"], "condition 'low' must be a map of shape (B, 1, 3, 3), got (4, 1, 5, 5)"),
        (["--cond", "low=gone.png"], "cannot be read (No such file or directory)"),
        (["--cond", "site=nowhere"], "--cond site=nowhere: no such class; choose from north, south coast, west"),
        (["--cond", "label=2"], "--cond label=2: no such class; choose from a, b"),
        (["--cond", "site=words.npy"], "it holds 'nowhere'; choose from north, south coast, west"),
        (["--cond", "site=five.npy"], "it holds float64 of shape (5,); a whole number or word a sample is needed"),
        (["--cond", "age=five.npy"], "it has 5 rows for 4 samples; one, or as many, are needed"),
        (["--cond", "age=inf.npy"], "condition 'age' holds infinite values"),
        (["--cond", "age=gone.npy"], "gone.npy: no such file"),
        (["--cond", "age=zip.npy"], "its content is not that of an .npy file"),
        (["--cond", "age=3", "--guidance", "nan"], "strength must be a finite number"),
        (["--cond", "age=3", "--guidance", "inf"], "strength must be a finite number"),
        (["--run", "ages", "--guidance", "2"], "--guidance 2: towards what? --cond NAME=VALUE says it, of age"),
        (["--cond", "label=", "--guidance", "2"], "--guidance 2: towards what? --cond NAME=VALUE says it, of label, site"),
        (["--run", "plain", "--guidance", "2"], "--guidance 2: this network was trained without labels or other conditions"),
        (
            ["--guidance", "2", "--rule", "cfgpp", "--solver", "ode"],
            "--rule cfgpp depends on the solver's steps, which 'ode' chooses as it runs",
        ),
    ]
    for flags, message in cases:
        run = [] if "--run" in flags else ["--run", "run"]
        code, out, err = sde_gen_command("sample", "--no-progress", "--samples", "4", "--out", "s.npz", *run, *flags)
        assert code == 2 and len(err) == 1 and message in err[0] and out == [], (flags, err)
    assert not (tmp_path / "s.npz").exists()


def test_a_map_of_one_channel_needs_no_axis_for_it(tmp_path: Path) -> None:
    saved(tmp_path / "run")
    fields = np.random.default_rng(0).normal(size=(7, 3, 3))
    for name, array in (("whole", fields[:, None]), ("rows", fields), ("one", fields[0])):
        np.save(tmp_path / f"{name}.npy", array)
    whole, rows, one = (
        drawn(tmp_path / "run", tmp_path / "s.npz", f"low={tmp_path / name}.npy")["low"] for name in ("whole", "rows", "one")
    )
    np.testing.assert_array_equal(whole, rows)
    np.testing.assert_array_equal(one, np.broadcast_to(fields[0], (7, 1, 3, 3)))


def test_guidance_leaves_out_what_training_left_out(tmp_path: Path) -> None:
    model = saved(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("training: {drop: {age: 0.1}}\n")
    given = ("label=", "age=3", "site=west")
    lines: list[str] = []
    found = drawn(tmp_path / "run", tmp_path / "s.npz", *given, lines=lines, guidance=3.0)["x"]
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert "training.drop left out label, pair, steps, low of no sample" in warning
    nulls = {name: encoder.missing(7, CPU) for name, encoder in model.encoders.items()}
    told = nulls | {"age": torch.full((7,), 3.0), "site": torch.full((7,), 2)}
    common: dict[str, Any] = {"steps": 4, "batch_size": 3, "progress": False}
    expected, other = (
        sde_gen.sample(sde_gen.guide(model, 3.0, drop=drop), (7, 1, 6, 6), "ddim", cond=told, **common).x.numpy()
        for drop in (("age",), None)
    )
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - other).max() > 1e-3
    with pytest.raises(ConfigError, match=r"training\.drop left out site of no sample"):
        drawn(tmp_path / "run", tmp_path / "s.npz", "label=", "site=west", guidance=3.0)
