"""Several processes under torchrun do what one does. Every launch costs seconds, so there are few, each of much."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from toys import Command

import sde_gen
from sde_gen import report
from sde_gen.training import TrainSettings, check_processes

WORKER = Path(__file__).with_name("parallel_worker.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
PATIENCE = 300


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    """torchrun with two processes of this Python in the directory `place`; skips where a process may not listen on loopback."""
    try:
        socket.create_server(("127.0.0.1", 0)).close()
    except OSError as error:
        pytest.skip(f"no socket on loopback here: {error}")
    path = os.pathsep.join([str(Path(sde_gen.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*TORCHRUN, *arguments], cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def launch(place: Path, *arguments: str) -> tuple[int, str]:
    """The exit code of torchrun and all that was written."""
    process = start(place, *arguments)
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, output


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    code, output = launch(tmp_path, str(WORKER), "equal", "found.json")
    assert code == 0, output
    found = json.loads((tmp_path / "found.json").read_text())
    trainings = {name: found.pop(name) for name in list(found) if name.startswith("training")}
    assert len(trainings) == 13
    for name, differences in trainings.items():
        assert differences["gradients"] <= 1e-6, name
        assert max(differences["weights"], differences["averaged"], differences["losses"]) <= 1e-5, (name, differences)
    assert found.pop("broadcast") == ["déjà 0", 0.0, [True, False]]
    assert found.pop("resumed, None") == 0 and found.pop("resumed, fsdp") == 0, "bit for bit, dropout of both processes and all"
    assert found.pop("likelihood run") <= 1e-4 and found.pop("likelihood") <= 1e-4  # steps are chosen to a tolerance of 1e-3
    assert len(found) == 9
    for name, difference in found.items():
        assert difference <= 1e-5, name
    assert (tmp_path / "together" / "compare" / "table.md").exists() and (tmp_path / "together" / "likelihood" / "terms.png").exists()


DATA = (
    "--data",
    "gaussians8",
    "--set",
    "data.limit=500",
    "--set",
    "model.options={width: 16, depth: 1}",
    "--batch",
    "18",
    "--no-progress",
    "--device",
    "cpu",
)
RUN = ("run", *DATA, "--train-steps", "12", "--set", "training.evaluations=2", "--samples", "33", "--solver", "em", "--steps", "3")


def test_a_run_by_two_processes_is_that_of_one_and_bad_input_is_said_once(sde_gen_command: Command, tmp_path: Path) -> None:
    lines = [["run", *DATA, "--lr", "-1"], [*RUN, "--out", "two"], [*RUN, "--out", "two"]]
    code, output = launch(tmp_path, str(WORKER), "commands", json.dumps(lines))
    assert code == 0, output
    found = [json.loads((tmp_path / f"found{rank}.json").read_text()) for rank in range(2)]
    assert [content["codes"] for content in found] == [[2, 0, 0]] * 2
    assert [content["threads"] for content in found] == [[], []], "what they still hold brings a process down that is ending"
    assert output.count("lr must be positive") == 1
    assert output.count("2 processes)") == output.count("reusing   the network") == 1, "a second group after the first"
    assert output.count("sampled   33 with em") == 2

    code, _, err = sde_gen_command(*RUN, "--out", "one")
    assert (code, err) == (0, [])

    def kept(name: str) -> list[dict[str, Any]]:
        return [json.loads((tmp_path / run / name).read_text()) for run in ("one", "two")]

    losses = [content["history"][-1]["loss"] for content in kept("history.json")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    distances = [content["solvers"]["em"]["sliced_wasserstein"]["value"] for content in kept("metrics.json")]
    assert distances[0] == pytest.approx(distances[1], rel=1e-4)
    first, second = (load_file(next((tmp_path / run / "checkpoint").glob("*/weights.safetensors"))) for run in ("one", "two"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert float((value - second[name]).abs().max()) < 1e-5, name
    code, _, err = sde_gen_command(*RUN, "--shard", "fsdp", "--out", "three")
    assert code == 2 and len(err) == 1 and "shard 'fsdp'" in err[0] and "torchrun --nproc_per_node=N" in err[0]
    assert not (tmp_path / "three").exists()


def test_one_process_two_processes_and_one_again_train_one_network(
    sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("--train-steps", "100000", "--set", "training.evaluations=400", "--checkpoint-every", "1s", "--samples", "33")
    command = ("run", *DATA, *settings, "--solver", "em", "--steps", "3", "--out", "run")

    def stopped() -> tuple[list[str], int]:
        """By one process, at its next evaluation."""
        with monkeypatch.context() as patch:
            patch.setattr(report, "picture_samples", lambda *_: signal.raise_signal(signal.SIGINT))
            code, out, err = sde_gen_command(*command)
        assert code == 130 and "interrupted at step" in err[0]
        return out, int(err[0].split("at step ")[1].split()[0])

    _, step = stopped()
    before = {path.name for path in (tmp_path / "run" / "checkpoint").iterdir()}
    process = start(tmp_path, "-m", "sde_gen.commands.cli", *command)
    deadline = time.monotonic() + PATIENCE
    while not any(path.name > max(before) for path in (tmp_path / "run" / "checkpoint").iterdir()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert f"resuming  the training in run/checkpoint at step {step} of" in output
    assert output.count("sde-gen: interrupted at step") == 1, output
    later = int(output.split("interrupted at step ")[1].split()[0])
    assert later > step

    out, last = stopped()
    assert out[0].startswith(f"resuming  the training in run/checkpoint at step {later} of") and last > later


def test_a_process_that_fails_ends_the_job(tmp_path: Path) -> None:
    began = time.monotonic()
    code, output = launch(tmp_path, str(WORKER), "fails", "raise")
    assert code != 0 and "OSError: the second disk is gone" in output, output
    assert time.monotonic() - began < 60


def test_settings_that_do_not_suit_the_processes() -> None:
    sharded = TrainSettings(batch=9, shard="fsdp")
    check_processes(sharded, 3)
    with pytest.raises(ValueError, match="batch must be a multiple of the 2 processes with shard 'fsdp', got 9"):
        check_processes(sharded, 2)
    with pytest.raises(ValueError, match="several processes"):
        check_processes(sharded, 1)
    with pytest.raises(ValueError, match="batch must be at least the number of processes, 10, got 9"):
        check_processes(TrainSettings(batch=9), 10)
    with pytest.raises(ValueError, match="unknown shard 'ddp'; choose from fsdp"):
        TrainSettings(shard="ddp")
