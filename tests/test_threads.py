"""Threads that suit a machine on which others work too: what is set before PyTorch loads, and how many are taken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import TINY_RUN, Command

from sde_gen import threads


def stat(*cores: tuple[int, int]) -> str:
    """/proc/stat of cores with so many ticks of work and of idleness each."""
    lines = [f"cpu{n} {work // 2} 0 {work - work // 2} {idle} 0 0 0 0 0 0" for n, (work, idle) in enumerate(cores)]
    return "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 5 0 0", "ctxt 7"])


def free(before: str, after: str, chosen: set[int]) -> int:
    texts = iter((before, after))
    return threads.free_cores(lambda: next(texts), lambda seconds: None, chosen)


@pytest.mark.parametrize(
    ("worked", "found"),
    [((0, 0, 0, 0), 4), ((30, 0, 0, 0), 3), ((8, 8, 7, 7), 3), ((3, 3, 3, 3), 4), ((30, 30, 0, 0), 2), ((30, 30, 30, 30), 1)],
)
def test_free_cores_are_those_on_which_nobody_worked_meanwhile(worked: tuple[int, ...], found: int) -> None:
    before, after = stat(*[(1000, 9000)] * 4), stat(*[(1000 + w, 9000 + 30 - w) for w in worked])
    assert free(before, after, {0, 1, 2, 3}) == found


def test_only_the_cores_that_this_process_may_run_on_count() -> None:
    before, after = stat((0, 0), (0, 0), (0, 0)), stat((30, 0), (0, 30), (0, 30))
    assert free(before, after, {1, 2}) == 2 and free(before, after, {0, 1}) == 1


def test_without_proc_stat_the_load_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(os, "getloadavg", lambda: (1.7, 0.0, 0.0))
    assert threads.free_cores(none, lambda seconds: None, set(range(8))) == 6


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """PyTorch as on a machine of eight cores, and nothing said by the user: the numbers of threads that it is given."""
    for name in (*threads.OF_USER, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    given = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: given[-1])
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    return given


def test_a_command_takes_the_free_cores_and_says_so(eight: list[int]) -> None:
    assert threads.choose(free=lambda: 8) is None and eight == [8]
    assert threads.choose(free=lambda: 16) is None and eight == [8]
    line = threads.choose(free=lambda: 6)
    assert eight == [8, 6] and line is not None and line.startswith("6 of 8 cores: 2 are busy")


@pytest.mark.parametrize("name", threads.OF_USER)
def test_the_user_s_number_stays(name: str, eight: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads.choose(3, free=lambda: 1) is None and eight == [8, 3]
    monkeypatch.setenv(name, "8")
    assert threads.choose(free=lambda: 1) is None and eight == [8, 3]
    with pytest.raises(ValueError, match="--threads must be at least 1, got 0"):
        threads.choose(0)


def test_a_training_keeps_the_number_that_it_began_with(eight: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads.keep(8) is None and eight == [8]
    line = threads.keep(2)
    assert eight == [8, 2] and line is not None and line.startswith("2, as the training began")
    line = threads.keep(5, asked=2)
    assert eight == [8, 2] and line is not None and line.startswith("2, where the training began with 5")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    line = threads.keep(5)
    assert eight == [8, 2] and line is not None and "last bits" in line


@pytest.mark.parametrize(
    ("given", "loaded", "found"),
    [
        ({}, False, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, False, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, False, {"OMP_WAIT_POLICY": "active"}),
        ({}, True, {}),
    ],
)
def test_what_the_user_has_set_stays(given: dict[str, str], loaded: bool, found: dict[str, str]) -> None:
    threads.set_spinning(given, loaded)
    assert given == found


def test_importing_the_package_sets_it_before_pytorch_loads_and_children_inherit_it() -> None:
    watch = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': print(os.environ.get('GOMP_SPINCOUNT'), flush=True); os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import sde_gen"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(threads.__file__).parents[1]), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", watch], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1000"]


def test_a_run_says_records_and_keeps_its_threads(sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*threads.OF_USER, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    command = ("run", "--data", "gaussians8", *TINY_RUN, "--out", "here")
    try:
        code, out, err = sde_gen_command(*command, "--threads", "2")
        assert (code, err) == (0, []) and torch.get_num_threads() == 2 and not [line for line in out if line.startswith("threads")]
        found = json.loads((tmp_path / "here" / "metrics.json").read_text())
        assert found["training"]["environment"]["threads"] == found["solvers"]["pc"]["environment"]["threads"] == 2
        monkeypatch.setattr("sde_gen.threads.choose.__defaults__", (None, lambda: 1))
        code, out, err = sde_gen_command(*command, "--train-steps", "20")
        said = [line for line in out if line.startswith("threads")]
        assert (code, err, torch.get_num_threads()) == (0, [], 2), err
        assert [line[:19] for line in said] == ["threads   1 of 2 co", "threads   2, as the"]
        found = json.loads((tmp_path / "here" / "metrics.json").read_text())
        assert found["training"]["environment"]["threads"] == 2
        code, out, err = sde_gen_command(*command, "--threads", "0")
        assert (code, err) == (2, ["sde-gen: --threads must be at least 1, got 0"])
    finally:
        torch.set_num_threads(before)
