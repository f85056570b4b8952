"""`sde-gen distill`, and `sample` of what it leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import TINY_RUN, Command

from sde_gen import load
from sde_gen.commands import distill as command
from sde_gen.commands.distill import DistillSettings, distill_run
from sde_gen.models.flow_map import FlowMap
from sde_gen.training import Interrupted, build_model, read_extra, save

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
FEW = ("--steps", "6", "--trajectories", "40", "--nodes", "4", "--no-progress")


@pytest.fixture
def labelled_run(sde_gen_command: Command, tmp_path: Path) -> str:
    np.savez(tmp_path / "my.npz", x=RNG.normal(5.0, 2.0, (80, 3)).astype("float32"), y=np.arange(80) % 2)
    code, _, err = sde_gen_command("run", *TINY_RUN, "--solver", "ddim", "--data", "my.npz", "--labels", "--out", "run")
    assert (code, err) == (0, [])
    return "run"


def saved(directory: Path) -> Path:
    """A run directory with an untrained network of three columns and no more."""
    model = build_model(torch.randn(50, 3), network="mlp", network_options={"width": 8, "depth": 1}).eval()
    about = {"name": "x", "shape": [3], "dtype": "float32", "levels": None, "whole": [False, False, True], "value_range": [0.0, 1.0]}
    save(model, directory / "checkpoint", extra={"data_description": about})
    return directory


def test_a_labelled_run_becomes_a_flow_map_that_sample_draws_from(labelled_run: str, sde_gen_command: Command) -> None:
    arguments = ("distill", "--run", labelled_run, "--out", "few", "--strengths", "1", "3", *FEW)
    code, out, err = sde_gen_command(*arguments)
    assert (code, err) == (0, []), err
    assert out[0].startswith("drawn     40 trajectories of 4 calls") and out[-1] == "flow map  few: sde-gen sample --run few --steps 4"
    assert sorted(path.name for path in Path("few").iterdir() if not path.name.startswith(".")) == [
        "checkpoint",
        "history.json",
        "loss.png",
    ]
    flow, extra = load("few"), read_extra("few/checkpoint")
    assert isinstance(flow, FlowMap) and flow.strengths == (1.0, 3.0) and len(flow.times) == 5
    assert extra["complete"] and extra["steps"] == 6 and extra["distilled_from"] == "run"
    assert json.loads(Path("few/history.json").read_text())["history"][-1]["step"] == 6
    code, out, err = sde_gen_command(*arguments)
    assert (code, out, err) == (0, ["reusing   the flow map in few"], [])
    for parameter in flow.network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # six steps have taught it nothing
    save(flow, "few/checkpoint", extra=extra)
    drawn = {}
    for name, more in {"plain": (), "one": ("--steps", "1"), "guided": ("--guidance", "2"), "at 1": ("--guidance", "1")}.items():
        where = ("--run", "few", "--samples", "20", "--out", f"{name}.npz", "--no-progress", *more)
        code, out, err = sde_gen_command("sample", *where)
        assert (code, err) == (0, []), err
        assert any(f"with jumps: {1 if name == 'one' else 4} network calls per sample" in line for line in out)
        with np.load(f"{name}.npz") as arrays:
            drawn[name] = arrays["x"]
            assert set(np.unique(arrays["label"])) == {0, 1}
    assert np.array_equal(drawn["plain"], drawn["at 1"])
    assert not np.allclose(drawn["plain"], drawn["guided"], atol=1e-5) and not np.allclose(drawn["plain"], drawn["one"], atol=1e-5)
    for flags, message in {
        ("--solver", "ddim"): "--solver ddim: a flow map is sampled by its own jumps, and takes --steps alone",
        ("--grid", "angle"): "--grid angle: a flow map is sampled by its own jumps, and takes --steps alone",
        ("--steps", "5"): "this flow map was trained for up to 4 steps, got 5: more belong to the model that it came from",
        ("--steps", "0"): "--steps must be at least 1, got 0",
        ("--guidance", "9"): "--guidance 9: 'strength' must be a number from 1 to 3, or one for each of 1 samples, got 9.0",
        ("--guidance", "2", "--rule", "apg"): "--rule apg: the guidance that is distilled into a flow map is cfg",
    }.items():
        code, out, err = sde_gen_command("sample", "--run", "few", "--samples", "2", "--out", "no.npz", *flags)
        assert (code, out, err) == (2, [], [f"sde-gen: {message}"])
    for other in (("likelihood",), ("compare",), ("restore", "--operator", "denoise"), ("doctor",)):
        code, out, err = sde_gen_command(*other, "--run", "few")
        assert code == 2 and err == ["sde-gen: few holds a flow map, which sde-gen sample alone takes; the run that it came from is run"]


def test_it_goes_on_after_being_killed_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, settings = saved(tmp_path / "run"), DistillSettings(steps=12, trajectories=40, nodes=4)
    whole = distill_run(run, tmp_path / "whole", settings, CPU, show=False, say=lambda line: None)
    save_as_is, steps = command.save, []

    def dies(model, path, ema=None, extra=None, state=None):
        save_as_is(model, path, ema, extra, state)
        steps.append(extra["steps"])
        if len(steps) == 5:
            raise KeyboardInterrupt  # nothing is tidied up: what lies there is what kill -9 would leave

    out, said = tmp_path / "few", []
    monkeypatch.setattr(command, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        distill_run(run, out, settings, CPU, show=False, say=said.append, checkpoint_seconds=1e-9)
    monkeypatch.setattr(command, "save", save_as_is)
    assert (out / command.TRAJECTORIES).exists() and not read_extra(out / "checkpoint")["complete"]
    monkeypatch.setattr(command, "draw_trajectories", lambda *a, **k: pytest.fail("they are there"))
    again = distill_run(run, out, settings, CPU, show=False, say=said.append)
    assert any(line.startswith(f"resuming  the distillation in {out} at step {steps[-1]}") for line in said)
    for name, value in whole.network.state_dict().items():
        # time is a part of the learning rate's schedule, a thousandth of it here
        torch.testing.assert_close(again.network.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    assert not (out / command.TRAJECTORIES).exists() and read_extra(out / "checkpoint")["complete"]


def test_an_interrupted_one_keeps_what_it_goes_on_from(tmp_path: Path) -> None:
    run, out = saved(tmp_path / "run"), tmp_path / "few"
    settings = DistillSettings(steps=30, trajectories=40, nodes=4)

    def stop(line):
        import os
        import signal

        if line.startswith("drawn"):
            os.kill(os.getpid(), signal.SIGTERM)

    import signal

    before = signal.signal(signal.SIGTERM, lambda *a: None)
    try:
        distill_run(run, out, settings, CPU, show=False, say=stop)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert read_extra(out / "checkpoint")["complete"], "a signal before the training began is not the training's"
    assert issubclass(Interrupted, KeyboardInterrupt)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--minutes", "0"), "--minutes must be positive and finite, got 0.0"),
        (("--minutes", "nan"), "--minutes must be positive and finite, got nan"),
        (("--steps", "0"), "steps must be a whole number of at least 1, got 0"),
        (("--nodes", "0"), "nodes must be an integer of at least 1, got 0"),
        (("--trajectories", "1"), "trajectories must be an integer of at least 2, got 1"),
        (("--method", "magic"), "unknown method 'magic'; choose from regression, progressive"),
        (("--strengths", "1", "4"), "strengths are of guidance towards conditions, and this network takes none"),
        (("--run", "nowhere"), "nowhere is not a run directory: it is not there"),
        (("--out", "file"), "--out file is a file; a directory is needed"),
        (("--out", "run"), "run holds a run of its own: give another --out, or remove it"),
        (("--out", "other"), "other holds a distillation of other settings (minutes, seed): give another --out, or remove it"),
    ],
)
def test_bad_input_is_one_line(sde_gen_command: Command, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    run = saved(tmp_path / "run")
    (tmp_path / "file").write_text("")
    if "other" in flags:
        distill_run(run, tmp_path / "other", DistillSettings(3.0, 1, trajectories=40, nodes=4, seed=2), CPU, False, lambda line: None)
        flags = (*flags, "--steps", "1", "--trajectories", "40", "--nodes", "4")
    code, out, err = sde_gen_command("distill", "--run", "run", "--out", "few", "--no-progress", *flags)
    assert (code, out, err) == (2, [], [f"sde-gen: {message}"])
    assert not Path("few").exists()
