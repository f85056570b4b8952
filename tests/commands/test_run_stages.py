"""Runs that are stopped at any stage, go on for longer, meet one another, and find their data again."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toys import Command

from sde_gen import load, load_dataset
from sde_gen.commands import cost
from sde_gen.commands.cli import main
from sde_gen.commands.config import resolve
from sde_gen.commands.cost import about, sampling_cost, training_cost
from sde_gen.commands.run_data import default_directory
from sde_gen.commands.training_files import TRAINING_FILES
from sde_gen.locks import LOCK
from sde_gen.networks import NETWORKS, Network
from sde_gen.training import TrainSettings, loop, read_extra, read_state, save
from sde_gen.training.trainer import Trainer

TINY = [
    *("--data", "gaussians8", "--network", "mlp", "--batch", "16", "--samples", "24", "--solver", "em", "--steps", "3", "--no-progress"),
    *("--set", "model.options={width: 16, depth: 1, dropout: 0.1}", "--set", "training.evaluations=1", "--set", "data.limit=60"),
]


class Killed(BaseException):
    pass


def killed(*args: Any, **kwargs: Any) -> Any:
    raise Killed


@pytest.fixture
def command(sde_gen_command: Command) -> Command:
    """`sde-gen run` of a network for eight Gaussians, in an empty directory."""
    return partial(sde_gen_command, "run", *TINY)


def weights(directory: Path) -> torch.Tensor:
    return torch.cat([p.flatten() for p in load(directory / "checkpoint").network.parameters()])


def losses(directory: Path) -> dict[str, Any]:
    """history.json without what depends on the clock."""
    found = json.loads((directory / "history.json").read_text())
    for entry in found["history"]:
        del entry["seconds"]
    return dict(found)


def printed_paths(lines: list[str]) -> list[Path]:
    """The paths that a run names at its end."""
    start = next(k for k, line in enumerate(lines) if line.startswith("pictures"))
    return [Path(path) for line in lines[start:] for path in line[10:].split(", ")]


STAGES = {
    "the first save": ("sde_gen.commands.runs.save", "trained   "),
    "history.json": ("sde_gen.commands.training_files.best_level_loss", "reusing   "),
    "metrics.json": ("sde_gen.commands.training_files.PARTS_OF_METRICS", "reusing   "),
    "loss.png": ("sde_gen.report.plot_loss", "reusing   "),
    "forward.png": ("sde_gen.report.picture_forward", "reusing   "),
    "sampling": ("sde_gen.commands.evaluation.sample_together", "reusing   "),
    "metrics": ("sde_gen.commands.evaluation.measure", "reusing   "),
    "the film": ("sde_gen.commands.evaluation._film", "reusing   "),
    "the report": ("sde_gen.commands.cli.write_report", "reusing   "),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that nothing stopped."""
    place = tmp_path_factory.mktemp("whole") / "run"
    assert main(["run", *TINY, "--train-steps", "12", "--out", str(place)]) == 0
    return place


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_at_any_stage_is_made_whole_by_the_next_command(
    stage: str, command: Command, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place, says = STAGES[stage]
    with monkeypatch.context() as patch:
        patch.setattr(place, killed)
        with pytest.raises((Killed, TypeError)):
            command("--train-steps", "12", "--out", "parts")
    capfd.readouterr()
    assert (tmp_path / "parts" / "config.yaml").exists() == (stage != "the first save"), "with the first checkpoint"
    code, out, err = command("--train-steps", "12", "--out", "parts")
    assert (code, err) == (0, []) and any(line.startswith(says) for line in out), out
    parts = tmp_path / "parts"
    assert all(path.exists() for path in printed_paths(out)) and all((parts / name).is_file() for name in TRAINING_FILES)
    assert losses(parts) == losses(whole)
    training = [json.loads((place / "metrics.json").read_text())["training"] for place in (whole, parts)]
    assert training[0].keys() == training[1].keys() and training[1]["steps"] == 12
    assert torch.equal(weights(parts), weights(whole))


@pytest.mark.parametrize("name", ["likelihood", "compare"])
def test_other_commands_make_the_missing_files_too(name: str, whole: Path, sde_gen_command: Command, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "here")
    for file in TRAINING_FILES:
        (tmp_path / "here" / file).unlink()
        if name == "compare" and file.endswith(".json"):  # what no command writes is as good as not there
            (tmp_path / "here" / file).write_text('{"solvers": null, "history": []}')
    lines = (tmp_path / "here" / "history.jsonl").read_text().splitlines()
    (tmp_path / "here" / "history.jsonl").write_text("\n".join(lines[:4]))  # then the checkpoint knows the losses
    options = ["--images", "16", "--tolerance", "0.1"] if name == "likelihood" else ["--solvers", "ddim", "--calls", "3", "--samples", "20"]
    code, out, err = sde_gen_command(name, "--run", "here", "--no-progress", *options)
    assert (code, err) == (0, []) and all((tmp_path / "here" / file).is_file() for file in TRAINING_FILES)
    assert any("history.json, metrics.json held something else" in line for line in out) == (name == "compare")
    assert json.loads((tmp_path / "here" / "metrics.json").read_text()) == json.loads((whole / "metrics.json").read_text())
    assert [entry["step"] for entry in losses(tmp_path / "here")["history"]] == list(range(1, 13))


def test_more_steps_go_on_from_a_finished_run_bit_for_bit(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = partial(command, "--set", "training.evaluations=2")
    assert command("--train-steps", "12", "--out", "a", "--solver", "ddim")[0] == 0
    assert (tmp_path / "a" / "solvers" / "ddim").exists()
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    first = weights(tmp_path / "a")
    code, out, err = command("--train-steps", "24", "--out", "a")
    assert (code, err) == (0, [])
    (line,) = (line for line in out if line.startswith("going on"))
    assert "from step 12 to 24 steps" in line and "that of a training of this length (now 0.001, cosine)" in line
    training = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert training["training"]["steps"] == 24 and training["training"]["earlier_ends"] == [12]
    assert set(training["solvers"]) == {"em"} and not (tmp_path / "a" / "solvers" / "ddim").exists(), (
        "what the shorter training's network made"
    )
    history = losses(tmp_path / "a")["history"]
    assert [entry["step"] for entry in history] == list(range(1, 25))
    assert [entry["step"] for entry in history if "level_loss" in entry] == [6, 12, 24]
    assert not torch.equal(weights(tmp_path / "a"), first)

    advance = Trainer.advance
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", lambda self: killed() if self.step == 17 else advance(self))
        with pytest.raises(Killed):
            command("--train-steps", "24", "--out", "c", "--checkpoint-every", "0.0001s")
    code, out, err = command("--train-steps", "24", "--out", "c")
    assert code == 0 and any(line.startswith("resuming") and "at step 17 of 24" in line for line in out), out
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "c")) and read_extra(tmp_path / "c" / "checkpoint")["earlier_ends"] == [
        12
    ]

    assert any(line.startswith("reusing") for line in command("--train-steps", "24", "--out", "a")[1])
    code, out, err = command("--train-steps", "12", "--out", "a")
    assert code == 2 and len(err) == 1 and "trained for longer (24 steps" in err[0] and "training.steps 24 -> 12" in err[0]
    code, out, err = command("--train-steps", "30", "--lr", "0.5", "--out", "a")
    assert code == 2 and "other settings" in err[0]


def test_more_seconds_go_on_too(command: Command, tmp_path: Path) -> None:
    steps = ["--train-steps", "1000000", "--out", "here"]
    assert command(*steps, "--max-seconds", "0.2")[0] == 0
    before, state = (read(tmp_path / "here" / "checkpoint") for read in (read_extra, read_state))
    assert state is not None
    code, out, err = command(*steps, "--max-seconds", str(state[1]["seconds"] + 0.3))
    assert (code, err) == (0, []) and any(line.startswith("going on") for line in out)
    after = read_extra(tmp_path / "here" / "checkpoint")
    assert after["steps"] > before["steps"] and "level_loss" in losses(tmp_path / "here")["history"][-1]
    assert command(*steps, "--max-seconds", "0.1")[0] == 2


def test_a_training_without_a_state_cannot_go_on(command: Command, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "here")
    place = tmp_path / "here" / "checkpoint"
    save(load(place, ema=False), place, extra=read_extra(place))
    assert read_state(place) is None
    code, _out, err = command("--train-steps", "24", "--out", "here")
    assert code == 2 and len(err) == 1 and "no state to go on from: --retrain" in err[0]
    assert command("--train-steps", "12", "--out", "here")[0] == 0


@pytest.fixture
def table(tmp_path: Path) -> np.ndarray:
    (tmp_path / "there").mkdir()
    rows = np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32)
    np.save(tmp_path / "there" / "energy.npy", rows)
    return rows


def test_the_same_data_by_any_path_are_the_same_data(command: Command, table: np.ndarray, tmp_path: Path) -> None:
    def run(path: str | Path) -> tuple[int, list[str], list[str]]:
        return command("--train-steps", "12", "--set", "data.limit=null", "--out", "here", "--data", str(path))

    assert run("there/energy.npy")[0] == 0
    shutil.copy(tmp_path / "there" / "energy.npy", tmp_path / "renamed.npy")
    for path in (tmp_path / "there" / "energy.npy", "./there/../there/energy.npy", "renamed.npy"):
        code, out, err = run(path)
        assert (code, err) == (0, []) and any(line.startswith("reusing") for line in out), path
        assert not any("other data" in line for line in out)
    np.save(tmp_path / "renamed.npy", table + 1)
    code, out, err = run("renamed.npy")
    assert code == 2 and len(err) == 1 and "data.name" in err[0] and "other settings" in err[0]
    np.save(tmp_path / "there" / "energy.npy", table + 1)
    code, out, err = run("there/energy.npy")
    assert code == 0 and any("trained on other data of this name" in line for line in out), "the same path, as its owner changed it"


def test_a_killed_training_can_be_looked_at_and_goes_on_with_its_own_data_alone(
    command: Command, sde_gen_command: Command, table: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = partial(command, "--set", "data.limit=null", "--data", "there/energy.npy", "--train-steps", "12", "--out", "here")
    advance, here = Trainer.advance, tmp_path / "here"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", lambda self: killed() if self.step == 7 else advance(self))
        with pytest.raises(Killed):
            command("--checkpoint-every", "0.0001s")
    code, out, err = sde_gen_command("doctor", "--run", "here", "--samples", "0")
    assert (code, err) == (1, []) and any("unfinished training: " in line and "step 7 of 12" in line for line in out), out
    assert "the training has not ended" in (here / "report.html").read_text()
    code, out, err = sde_gen_command("sample", "--run", "here", "--samples", "4", "--out", "x.npy", "--no-progress")
    assert (code, err) == (0, []) and sum("has not ended: its checkpoint is of step 7;" in line for line in out) == 1
    assert any("4 with em: 4 network calls" in line for line in out), "the run's own solver"
    np.save(tmp_path / "there" / "energy.npy", 1000 * table + 5000)
    code, out, err = command()
    assert code == 2 and len(err) == 1 and "its training cannot go on with them: sde-gen run --retrain" in err[0], err
    np.save(tmp_path / "there" / "energy.npy", table)
    code, out, err = command()
    assert (code, err) == (0, []) and any(line.startswith("resuming") for line in out)
    assert not (here / "doctor.json").exists() and "has not ended" not in (here / "report.html").read_text(), "of the network at step 7"


def test_a_new_network_that_cannot_be_sampled_has_its_own_configuration(
    command: Command, whole: Path, sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "here")
    with monkeypatch.context() as patch:
        patch.setattr("sde_gen.commands.evaluation.sample_together", killed)
        with pytest.raises(Killed):
            command("--train-steps", "12", "--out", "here", "--retrain", "--set", "model.options.width=8")
    code, _out, err = sde_gen_command("likelihood", "--run", "here", "--images", "4", "--tolerance", "0.1", "--no-progress")
    assert (code, err) == (0, []) and "width 8" in (tmp_path / "here" / "report.html").read_text()


def test_two_files_of_one_stem_are_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "energy").mkdir()
    names = {name: default_directory(resolve({"data": {"name": name}})) for name in ("energy.npy", "./energy.csv", "energy/", "digits")}
    assert [str(path) for path in names.values()] == ["runs/energy.npy-vp", "runs/energy.csv-vp", "runs/energy-vp", "runs/digits-vp"]
    assert default_directory(resolve({"data": {"name": str(tmp_path / "energy.npy")}})) == names["energy.npy"]
    assert default_directory(resolve({"data": {"name": "."}})) == Path("runs") / f"{tmp_path.name}-vp"


def test_a_run_finds_its_data_from_any_directory(
    command: Command, sde_gen_command: Command, table: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "there")
    assert command("--train-steps", "12", "--set", "data.limit=null", "--data", "energy.npy", "--out", "run")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.save("energy.npy", table + 1)  # of the same name, and not the data of the run

    def examined(run: Path) -> list[str]:
        code, out, err = sde_gen_command("doctor", "--run", str(run), "--samples", "0")
        assert code in (0, 1) and err == [], err
        return out

    run = tmp_path / "there" / "run"
    assert not any("other data" in line for line in examined(run))
    assert not any("other data" in line for line in examined(Path("..") / "there" / "run"))
    code, out, err = sde_gen_command("likelihood", "--run", str(run), "--images", "4", "--tolerance", "0.1", "--no-progress")
    assert (code, err) == (0, []) and not any("other data" in line for line in out)
    code, out, err = command("--config", str(run / "config.yaml"), "--train-steps", "12", "--data", "energy.npy", "--out", str(run))
    assert code == 2 and "data.name" in err[0], "a flag's path starts here"
    shutil.move(tmp_path / "there", tmp_path / "moved")
    moved = tmp_path / "moved" / "run"
    assert not any("other data" in line for line in examined(moved)), "found beside the run, by its signature"
    (tmp_path / "moved" / "energy.npy").unlink()
    assert any("other data" in line for line in examined(moved))
    Path("energy.npy").unlink()
    code, out, err = sde_gen_command("doctor", "--run", str(moved))
    assert code == 2 and len(err) == 1 and "the data of" in err[0] and "'energy.npy' is neither below" in err[0]


def test_two_commands_on_one_directory(command: Command, whole: Path, sde_gen_command: Command, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "here")
    script = "import sys, time\nfrom pathlib import Path\nfrom sde_gen.locks import held\n"
    script += "with held(Path('here')):\n    print(1, flush=True)\n    time.sleep(300)"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline()
        for arguments in (("--train-steps", "12"), ("--train-steps", "24"), ("--retrain",)):
            code, _, err = command(*arguments, "--out", "here")
            assert code == 2 and len(err) == 1, err
            assert re.search(rf"here is in use by process {child.pid} on .* since .*: wait for it, or --out DIR works beside it", err[0])
        for name in ("compare", "likelihood", "doctor"):
            code, _, err = sde_gen_command(name, "--run", "here", "--no-progress")
            assert code == 2 and len(err) == 1 and err[0].endswith("wait for it"), err
        assert not {"compare", "likelihood", "doctor.json"} & {path.name for path in (tmp_path / "here").iterdir()}
        code, _, err = sde_gen_command("sample", "--run", "here", "--samples", "4", "--out", "x.npy", "--no-progress")
        assert (code, err) == (0, []), "which only reads the network"
    finally:
        child.kill()
        child.wait()
    assert command("--train-steps", "12", "--out", "here")[0] == 0 and not (tmp_path / "here" / LOCK).exists()


def test_the_write_test_leaves_a_file_of_its_old_name_alone(command: Command, tmp_path: Path) -> None:
    (tmp_path / ".sde_gen-write-test").write_text("another process's")
    assert command("--train-steps", "12", "--out", "here")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {".sde_gen-write-test", "here"}


class Own(Network):
    """A network with an option that no checkpoint can keep."""

    def __init__(self, shape: Any, classes: int | None = None, out_channels: int | None = None) -> None:
        super().__init__(shape, classes, out_channels, {"activation": torch.tanh})
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, c: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return torch.as_tensor(self.layer(x))


class Foreign(nn.Module):
    """No `Network`: the command line cannot make it."""


@pytest.mark.parametrize(
    ("kind", "said"), [(Own, "could not be saved: .*must be finite numbers, strings"), (Foreign, "is no sde_gen.networks.Network")]
)
def test_a_network_that_cannot_be_saved_is_refused_before_any_work(
    kind: type[nn.Module], said: str, sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "own", kind)
    code, out, err = sde_gen_command("run", "--data", "gaussians8", "--network", "own")
    assert (code, out, len(err)) == (2, [], 1) and re.search(said, err[0]), err
    assert list(tmp_path.iterdir()) == []


def test_the_start_says_what_it_will_cost_and_changes_no_number(
    command: Command, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PACE_STEPS", 3)
    code, out, err = command("--train-steps", "12", "--out", "here")
    assert (code, err) == (0, [])
    threads = torch.get_num_threads()
    number = r"[\d.]+ (s|min|h)"
    pattern = rf"expected  12 steps of 16 in about {number} \(float32, {threads} threads?\); "
    pattern += rf"sampling 24 with em: 4 calls each, about {number}; metrics about {number}"
    assert [bool(re.fullmatch(pattern, line)) for line in out if line.startswith("expected")] == [True], out
    assert torch.equal(weights(tmp_path / "here"), weights(whole))
    solvers = [json.loads((place / "metrics.json").read_text())["solvers"]["em"] for place in (whole, tmp_path / "here")]
    assert solvers[0]["sliced_wasserstein"] == solvers[1]["sliced_wasserstein"]
    lines = [line for line in command("--train-steps", "12", "--out", "here")[1] if line.startswith("expected")]
    assert len(lines) == 1 and lines[0].startswith("expected  sampling 24 with em: 4 calls each, about ")


def test_a_dry_run_measures_and_leaves_no_trace(command: Command, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    code, out, err = command("--dry-run", "--train-steps", "500", "--max-seconds", "0.001", "--set", "training.bfloat16=true")
    assert (code, err) == (0, []) and list(tmp_path.iterdir()) == [] and torch.equal(torch.get_rng_state(), state)
    (line,) = (line for line in out if line.startswith("# expected"))
    assert re.match(
        r"# expected  about \d+ steps of 16 of 500, training ends after 0.001 s \(max_seconds\) \(bfloat16, 1 thread\); then ", line
    ), line
    assert "sampling 24 with em: 4 calls each" in line and "measured on a few steps" in "\n".join(out)


def test_costs_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("gaussians8", limit=300)
    settings = TrainSettings(steps=100, batch=8, evaluations=4)
    held = min(128, len(data.test if data.test is not None else data.train))
    evaluations = 4 * (16 * held + 51 * 1000) * 0.001
    assert training_cost(settings, data, 0, 2.0, 0.001, "cpu").startswith(f"100 steps of 8 in about {about(200 + evaluations)} (float32")
    assert training_cost(settings, data, 50, 2.0, 0.0, "cpu").startswith("50 more steps of 8 in about 100 s ")
    monkeypatch.setattr(cost, "metrics_seconds", lambda *_: 30.0)
    config = resolve({"sampling": {"solver": "pc", "samples": 900, "steps": 50}}).sampling
    assert sampling_cost(config, data, 0.01, 100, tmp_path) == "sampling 900 with pc: 101 calls each, about 17 min; metrics about 30 s"
    adaptive = resolve({"sampling": {"solver": "ode", "samples": 900}}).sampling
    assert "as many calls as the solver finds it needs, 9 s for each" in sampling_cost(adaptive, data, 0.01, 100, tmp_path)
    assert [about(seconds) for seconds in (0.123, 59.6, 601, 7300)] == ["0.12 s", "60 s", "10 min", "2.0 h"]


def test_a_kill_before_the_first_save_leaves_nothing_to_refuse(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", killed)
        with pytest.raises(Killed):
            command("--train-steps", "12", "--out", "here")
    (tmp_path / "here" / "checkpoint" / f".part-{os.getpid()}").mkdir(parents=True)
    code, _out, err = command("--train-steps", "12", "--out", "here", "--lr", "0.004")
    assert (code, err) == (0, [])
