"""Samples of a run as files."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from toys import TINY_RUN, Command

from sde_gen import load, parallel
from sde_gen.commands import sample as command
from sde_gen.commands.sample import sample_to_files
from sde_gen.commands.sample_job import SampleSettings, classes_by_shares, plan_job
from sde_gen.sampling.fitted import FittedGrid, law_of
from sde_gen.training import build_model, read_extra, save, save_fitted

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")
HEADER = ["a", "where", "count"]


@pytest.fixture
def table_run(sde_gen_command: Command, tmp_path: Path) -> Path:
    """A conditional network of a table, whose data file is gone."""
    rows = [f"{a},{'north' if k % 4 else 'south'},{k % 7}" for k, a in enumerate(RNG.normal(size=80))]
    (tmp_path / "my.csv").write_text("\n".join([",".join(HEADER), *rows]))
    quickly = ("--lr", "0.05", "--set", "training.warmup=0")  # labels say nothing before training
    code, _, err = sde_gen_command(
        "run", *TINY_RUN, *quickly, "--solver", "ddim", "--data", "my.csv", "--label-column", "where", "--labels"
    )
    assert (code, err) == (0, [])
    (tmp_path / "my.csv").unlink()
    return Path("runs/my.csv-vp")


def saved(directory: Path, **changes: Any) -> Path:
    """A run directory with an untrained network of three columns and no more."""
    model = build_model(torch.randn(50, 3), network="mlp", network_options={"width": 8, "depth": 1}, **changes).eval()
    about = {"name": "x", "shape": [3], "dtype": "float32", "levels": None, "whole": [False, False, True], "value_range": [0.0, 1.0]}
    if changes:
        about |= {"label_names": [3, 5], "label_counts": [30, 10]}
    save(model, directory / "checkpoint", extra={"data_description": about})
    return directory


def test_a_table_from_the_run_directory_alone(table_run: Path, sde_gen_command: Command, tmp_path: Path) -> None:
    arguments = ("sample", "--run", str(table_run), "--samples", "40", "--no-progress", "--batch-size", "16", "--out")
    code, out, err = sde_gen_command(*arguments, "new/s.csv")
    assert (code, err) == (0, []), err
    with open("new/s.csv", newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == HEADER and len(rows) == 40 and all(row[2].lstrip("-").isdigit() for row in rows)
    assert 8 <= sum(row[1] == "south" for row in rows) <= 12, "a quarter, as in the data"
    assert any("whole numbers in the columns that hold such: count" in line for line in out)
    assert sorted(path.name for path in Path("new").iterdir()) == ["s.csv"]
    code, out, err = sde_gen_command(*arguments, "s.npz")
    with np.load("s.npz") as arrays:
        x, labels = arrays["x"], arrays["label"]
    assert x.shape == (40, 2) and labels.tolist() == [row[1] for row in rows]
    np.testing.assert_array_equal(x, np.array([[row[0], row[2]] for row in rows], dtype=np.float32))
    code, out, err = sde_gen_command(*arguments, "south.npz", "--label", "south")
    with np.load("south.npz") as arrays:
        assert set(arrays["label"]) == {"south"}
        same = (arrays["x"] == x).all(axis=1)
    assert same[labels == "south"].all() and not same[labels == "north"].all(), "the label reaches the network, the noise is the same"
    guided = {}
    for strength in ("1", "3"):
        code, out, err = sde_gen_command(*arguments, f"guided{strength}.npz", "--label", "south", "--guidance", strength)
        assert (code, err) == (0, []), err
        assert any(line.startswith(f"guidance  strength {strength} by rule cfg") for line in out)
        assert any(f"{8 if strength == '3' else 4} network calls per sample" in line for line in out), out
        guided[strength] = np.load(f"guided{strength}.npz")["x"]
    np.testing.assert_array_equal(guided["1"], np.load("south.npz")["x"])
    assert not np.array_equal(guided["3"], guided["1"])
    with np.load(table_run / "solvers" / "ddim" / "samples.npz") as arrays:
        assert arrays["x"].shape == (32, 2) and set(arrays["label"]) == {"north", "south"}
        assert (arrays["x"][:, 1] == np.rint(arrays["x"][:, 1])).all()
    code, out, err = sde_gen_command(*arguments, "s.npz")
    assert code == 2 and len(err) == 1 and "s.npz is there already; --overwrite" in err[0]
    code, out, err = sde_gen_command(*arguments, "s.npz", "--overwrite", "--seed", "3")
    assert code == 0 and not np.array_equal(np.load("s.npz")["x"], x)


def test_pictures_and_the_samples_of_a_run(sde_gen_command: Command, tmp_path: Path) -> None:
    for i in range(60):
        Path("faces").mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(256, size=(4, 5, 3), dtype=np.uint8)).save(tmp_path / "faces" / f"{i}.png")
    code, out, err = sde_gen_command("run", *TINY_RUN, "--solver", "ddim", "--data", "faces")
    assert (code, err) == (0, [])
    arguments = ("sample", "--run", "runs/faces-vp", "--samples", "32", "--no-progress", "--out")
    code, out, err = sde_gen_command(*arguments, "new")
    assert (code, err) == (0, [])
    assert any("clipped to 0 .. 255 (" in line and "% of the values" in line for line in out)
    pictures = [np.asarray(Image.open(path)) for path in sorted(Path("new").glob("*.png"))]
    with np.load("runs/faces-vp/solvers/ddim/samples.npz") as arrays:
        assert arrays["x"].dtype == np.uint8 and list(arrays) == ["x"]
        np.testing.assert_array_equal(np.stack(pictures).transpose(0, 3, 1, 2), arrays["x"])
    for name, message in (("new", "not empty"), ("a.csv", "no rows of a table"), ("a.xyz", "cannot write .xyz"), ("a.nii", "no volumes")):
        code, out, err = sde_gen_command(*arguments, name)
        assert code == 2 and len(err) == 1 and message in err[0], err


def test_a_killed_job_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, settings = saved(tmp_path / "run"), SampleSettings(50, "em", 4, batch=8)
    sample_to_files(run, str(tmp_path / "whole.npy"), settings, CPU, say=lambda line: None)
    whole = np.load(tmp_path / "whole.npy")
    draw, drawn = command._shard, []

    def killed(job: Any, first: int, last: int, common: Any) -> Any:
        drawn.append(first)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(job, first, last, common)

    monkeypatch.setattr(command, "_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        sample_to_files(run, str(tmp_path / "s.npy"), settings, CPU, say=lambda line: None)
    assert not (tmp_path / "s.npy").exists() and len(list((tmp_path / ".s.npy.parts").glob("0*.npz"))) == 3
    for other in (SampleSettings(50, "em", 4, batch=8, seed=1), SampleSettings(51, "em", 4, batch=8), SampleSettings(50, "em", 5, batch=8)):
        with pytest.raises(ValueError, match=r"s\.npy\.parts holds the beginning of other samples \((seed 0, now 1|samples 50|steps 4)"):
            sample_to_files(run, str(tmp_path / "s.npy"), other, CPU)
    lines: list[str] = []
    sample_to_files(run, str(tmp_path / "s.npy"), settings, CPU, say=lines.append)
    assert lines[0] == "going on  with 3 of 7 parts that are there" and drawn[4:] == [24, 32, 40, 48]
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), whole)
    assert not (tmp_path / ".s.npy.parts").exists()
    assert len(np.unique(whole, axis=0)) == 50


def test_a_killed_join_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, settings = saved(tmp_path / "run"), SampleSettings(20, "em", 2, batch=8)
    with monkeypatch.context() as patch:
        patch.setattr("sde_gen.data.write_tables.text_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample_to_files(run, str(tmp_path / "s.csv"), settings, CPU, say=lambda line: None)
    assert [path.name for path in tmp_path.glob("*.csv")] == []
    monkeypatch.setattr(command, "_shard", lambda *_: 1 / 0)
    sample_to_files(run, str(tmp_path / "s.csv"), settings, CPU, say=lambda line: None)
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 20


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_out_the_shards_and_draw_the_same_bits(world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes one after the other, the first one last, as it joins what all have drawn."""
    run, settings = saved(tmp_path / "run", conditions=2), SampleSettings(50, "em", 3, batch=8)
    sample_to_files(run, str(tmp_path / "alone.npz"), settings, CPU, say=lambda line: None)
    job = plan_job(run, str(tmp_path / "together.npz"), settings, CPU)
    job.parts.mkdir()
    monkeypatch.setattr(parallel, "world", lambda: world)
    monkeypatch.setattr(parallel, "wait", lambda: None)
    for rank in reversed(range(world)):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        before = set(job.parts.glob("*.npz"))
        sample_to_files(run, str(tmp_path / "together.npz"), settings, CPU, say=lambda line: None)
        if rank:
            mine = {file for file, _, _ in job.shards[rank::world]}
            assert set(job.parts.glob("*.npz")) - before == mine
    with np.load(tmp_path / "alone.npz") as alone, np.load(tmp_path / "together.npz") as together:
        np.testing.assert_array_equal(alone["x"], together["x"])
        assert set(alone["label"]) == {3, 5} and (alone["label"] == together["label"]).all()


def test_classes_come_in_the_shares_of_the_data_whatever_the_shard() -> None:
    counts = (950, 0, 50)
    whole = classes_by_shares(0, 3000, counts)
    assert np.bincount(whole, minlength=3).tolist() == pytest.approx([2850, 0, 150], abs=5)
    np.testing.assert_array_equal(whole[1024:1100], classes_by_shares(1024, 1100, counts))
    assert np.bincount(classes_by_shares(10**12, 10**12 + 400, (1, 3))).tolist() == pytest.approx([100, 300], abs=5)


def test_shards_are_whole_batches_and_not_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_gen.commands.sample_job.MOST_SHARDS", 4)
    job = plan_job(saved(tmp_path / "run"), str(tmp_path / "s.npy"), SampleSettings(50, batch=3), CPU)
    assert [(first, last) for _, first, last in job.shards] == [(0, 15), (15, 30), (30, 45), (45, 50)]


def test_memory_is_that_of_one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, sizes = saved(tmp_path / "run"), []
    monkeypatch.setattr(command, "sample", lambda model, shape, **_: sizes.append(shape[0]) or fake(shape))

    class Out:
        def __init__(self, shape: Any) -> None:
            self.x, self.nfe = torch.zeros(shape), torch.zeros(shape[0])

    fake = Out
    sample_to_files(run, str(tmp_path / "s.npy"), SampleSettings(10_000, batch=100), CPU, say=lambda line: None)
    assert sizes == [100] * 100 and np.load(tmp_path / "s.npy", mmap_mode="r").shape == (10_000, 3)


def test_a_run_of_an_earlier_version_looks_at_its_data(sde_gen_command: Command, tmp_path: Path) -> None:
    rows = "\n".join(f"{a},{k}" for k, a in enumerate(RNG.normal(size=80)))
    (tmp_path / "my.csv").write_text(f"height,n\n{rows}")
    assert sde_gen_command("run", *TINY_RUN, "--solver", "ddim", "--data", "my.csv")[0] == 0
    run = tmp_path / "runs" / "my.csv-vp"
    extra = read_extra(run / "checkpoint")
    assert extra.pop("data_description")["columns"] == ["height", "n"]
    save(load(run), run / "checkpoint", extra=extra)
    arguments = ("sample", "--run", str(run), "--samples", "5", "--no-progress", "--out")
    assert sde_gen_command(*arguments, "a.csv")[0] == 0 and Path("a.csv").read_text().startswith("height,n\n")
    (tmp_path / "my.csv").unlink()
    code, _, err = sde_gen_command(*arguments, "b.csv")
    assert code == 2 and len(err) == 1 and "earlier version" in err[0] and "my.csv" in err[0]


def test_settings_are_the_runs_unless_the_solver_is_another(tmp_path: Path) -> None:
    run = saved(tmp_path / "run")
    sampling = {"solver": "dpmpp", "steps": 7, "grid": "time", "seed": 5, "batch": 9, "options": {"order": 1}}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "gone/x.npy"}, "sampling": sampling}))

    def settings(**changes: Any) -> dict[str, Any]:
        return plan_job(run, "s.npy", SampleSettings(20, **changes), CPU).settings

    names = ("solver", "steps", "grid", "seed", "batch", "options")
    own = settings()
    assert [own[name] for name in names] == ["dpm", 7, "time", 5, 9, {"order": 1}]
    assert settings(solver="dpmpp", steps=3)["options"] == {"order": 1} and settings(solver="dpm", steps=3)["steps"] == 3
    other = settings(solver="heun")
    assert [other[name] for name in names] == ["heun", None, None, 5, 9, {}]


def test_bad_input_is_one_line(sde_gen_command: Command, tmp_path: Path) -> None:
    run, labelled = saved(tmp_path / "run"), saved(tmp_path / "labelled", conditions=2)
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file").write_text("")
    base: dict[str, str] = {"--run": str(run), "--samples": "4", "--out": "s.npz"}
    cases: list[tuple[dict[str, str], str]] = [
        ({"--run": "nowhere"}, "nowhere is not a run directory"),
        ({"--run": str(tmp_path)}, "holds no trained network"),
        ({"--samples": "0"}, "--samples must be at least 1, got 0"),
        ({"--samples": "x"}, "--samples"),
        ({"--batch-size": "0"}, "--batch-size must be at least 1"),
        ({"--threads": "0"}, "--threads must be at least 1"),
        ({"--steps": "0"}, "--steps must be at least 1"),
        ({"--seed": "-1"}, "seed must be in"),
        ({"--solver": "nothing"}, "unknown solver 'nothing'"),
        ({"--grid": "nothing"}, "unknown grid 'nothing'"),
        ({"--grid": "fitted"}, "no grid is fitted for 'pc'"),
        ({"--label": "1"}, "trained without labels"),
        ({"--run": str(labelled), "--label": "1"}, "--label 1: no such label; choose from 3, 5"),
        ({"--guidance": "2"}, "--guidance 2: this network was trained without labels"),
        ({"--rule": "apg"}, "give its strength too"),
        ({"--run": str(labelled), "--guidance": "2", "--rule": "x"}, "unknown guidance rule 'x'; choose from cfg, cfgpp, apg, cfg_zero"),
        ({"--run": str(labelled), "--guidance": "nan"}, "strength must be a finite number"),
        ({"--out": "pictures"}, "no images"),
        ({"--out": "a.feather"}, "cannot write .feather files"),
        ({"--out": "folder.npy"}, "folder.npy is a folder"),
        ({"--out": "file/s.npz"}, "file"),
        ({"--device": "cuda:99x"}, "device"),
    ]
    for changes, message in cases:
        code, out, err = sde_gen_command("sample", "--no-progress", *(word for pair in (base | changes).items() for word in pair))
        assert code == 2 and len(err) == 1 and message in err[0] and out == [], (changes, err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.npy", "labelled", "run"]


def test_a_fitted_grid_that_is_there_is_used_and_tells_jobs_apart(tmp_path: Path) -> None:
    run = saved(tmp_path / "run")
    plain = plan_job(run, "s.npy", SampleSettings(20, "dpm", 3), CPU).settings
    model = load(run)
    kept = FittedGrid("dpm", 3, (0.9, 0.5, 0.2, 0.1), law=law_of(model))
    model.fitted[kept.key] = kept
    save_fitted(model, run / "checkpoint")
    for grid in ("fitted", None):
        fitted = plan_job(run, "s.npy", SampleSettings(20, "dpm", 3, grid), CPU).settings
        assert plain["fitted"] is None and fitted["fitted"]["times"] == [0.9, 0.5, 0.2, 0.1]
        assert fitted["network"] == plain["network"]


def test_flags_of_the_data_room_reach_it(sde_gen_command: Command, tmp_path: Path) -> None:
    array = RNG.normal(size=(60, 6, 5, 3))
    array[7, 2, 2, 1] = -9999
    np.save("a.npy", array)
    code, out, err = sde_gen_command("run", "--dry-run", "--data", "a.npy", "--axes", "nhwc", "--missing", "-9999", "--split", "tail")
    assert (code, err) == (0, [])
    found = yaml.safe_load("\n".join(out))
    assert {key: found["data"][key] for key in ("axes", "missing", "split")} == {"axes": "nhwc", "missing": -9999.0, "split": "tail"}
    assert found["model"]["network"] == "unet" and found["training"]["batch"] == 64, "the recipe of 3 x 6 x 5"
    arguments = ("--axes", "NHWC", "--missing", "-9999", "--split", "tail", "--solver", "deis")
    code, out, err = sde_gen_command("run", *TINY_RUN, "--data", "a.npy", *arguments)
    assert (code, err) == (0, [])
    text = "\n".join(out)
    assert "axes NHWC" in text and "1 of 60 items are left out" in text and "held out the last 5 of 59 items" in text
    assert (tmp_path / "runs" / "a.npy-vp" / "solvers" / "ab" / "samples.npz").exists(), "an alias has one directory with its name"
    for flags, message in (
        (("--axes", "NXY"), "axes 'NXY'"),
        (("--split", "head"), "split 'head'"),
        (("--missing", "word"), "missing 'word'"),
    ):
        code, out, err = sde_gen_command("run", "--data", "a.npy", *(() if "--axes" in flags else ("--axes", "NHWC")), *flags)
        assert code == 2 and len(err) == 1 and message in err[0], err
    code, out, err = sde_gen_command("run", "--axes", "NCHW")
    assert code == 2 and len(err) == 1 and "digits" in err[0]
