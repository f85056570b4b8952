"""The arithmetic of benchmarks/busy_machine.py and its measuring processes."""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "busy_machine.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_busy_machine", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_are_those_within_a_round_and_held_against_their_targets(bench: ModuleType) -> None:
    rounds = []
    for slow in (1.0, 10.0, 100.0):  # the machine's own pace cancels
        found = {name: {"step": slow, "call": slow, "threads": 1.0} for name in bench.CASES}
        found["busy"] |= {"step": 1.2 * slow, "call": 1.4 * slow}
        found["free, spinning"] |= {"step": 0.5 * slow}
        rounds.append(found)
    ratios = bench.summarise(rounds)["ratios"]
    assert ratios["busy / busy, one, step"]["median"] == pytest.approx(1.2) and ratios["busy / busy, one, step"]["met"]
    assert not ratios["busy / busy, one, call"]["met"]
    assert ratios["free / free, spinning, step"]["median"] == pytest.approx(2.0) and not ratios["free / free, spinning, step"]["met"]


def test_slow_work_is_not_repeated_for_ever(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MOST", 0.01)
    calls: list[float] = []

    def slow() -> None:
        calls.append(0.0)
        time.sleep(0.006 if len(calls) > 2 else 0.012)

    assert bench.mean_seconds(slow, 100) >= 0.006 and len(calls) <= 4


def test_the_busy_process_works_and_ends(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = bench.subprocess.Popen
    monkeypatch.setattr(bench.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with bench.busy_process(True):
        used = os.times().children_user
        assert started[0].poll() is None
        time.sleep(0.3)
    assert started[0].poll() is not None and os.times().children_user - used > 0.02
    with bench.busy_process(False):
        assert len(started) == 1


@pytest.mark.parametrize(("name", "spins"), [("busy, one", "1000"), ("free, spinning", "300000")])
def test_a_case_runs_in_a_process_with_its_environment(
    name: str, spins: str, bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    report = tmp_path / "busy_machine.py"
    report.write_text(
        "import json, os, sys\nfrom sde_gen import threads\n"
        "print(json.dumps([sys.argv[2], os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_NUM_THREADS')]))"
    )
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FILE.parents[1]), *sys.path]))
    work, spin_count, number = bench.measure(name, 2, 3)
    assert json.loads(work) == [bench.CASES[name][2], 2, 3] and spin_count == spins and number is None
