"""What another process on the machine costs: training steps and sampling of the default, free and beside one busy process.

    python benchmarks/busy_machine.py             # about three minutes on two cores with nothing else to do
    python benchmarks/busy_machine.py --quick     # seconds: that it runs

Each number is of a process of its own, since what OpenMP does while it waits is settled when PyTorch is loaded: it makes the default
digits network, takes a few training steps and network calls that do not count, then up to STEPS training steps of 64 and CALLS network
calls for 100 samples, and gives their mean times. The cases take turns, over ROUNDS rounds:

    free            as a command starts it on a free machine: all cores, threads that do not spin
    free, spinning  the same without the setting: what PyTorch does by itself
    busy            beside one busy process, as a command starts it there: sde_gen.threads.choose looks at the cores
    busy, spinning  all cores and spinning threads beside it: what PyTorch does by itself
    busy, all       all cores, threads that do not spin, beside it: a command that began on free cores, whose number of threads stays
    busy, one       one thread beside it, which is what the busy cases are held against

The busy process is a loop of this script's own in pure Python, one core's worth of work, which ends with it. Ratios are medians of the
ratios within a round, with the quartiles. Targets: busy / one at most 1.3, free / spinning at most 1.03. Where other work than this
script's goes on, the numbers mean nothing: the free cores before each round are noted too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STEPS, CALLS, ROUNDS = 25, 12, 4
MOST = 3.0
"""Seconds after which no further step or call begins."""
TARGETS = {"busy": ("busy, one", 1.3), "free": ("free, spinning", 1.03)}
SPINNING = {"GOMP_SPINCOUNT": "300000"}
"""GNU's own number of turns where nothing is set."""
CASES: dict[str, tuple[bool, dict[str, str], int | None]] = {
    "free": (False, {}, None),
    "free, spinning": (False, SPINNING, None),
    "busy": (True, {}, 0),
    "busy, spinning": (True, SPINNING, None),
    "busy, all": (True, {}, None),
    "busy, one": (True, {}, 1),
}
"""Name to whether a busy process runs beside it, the environment, and the threads: None as PyTorch takes, 0 as a command chooses."""
KINDS = ("step", "call")


def work(threads: int | None, steps: int, calls: int) -> dict[str, float]:
    """In a process of its own: mean seconds of a training step and of a network call of the default digits run."""
    from sde_gen.threads import choose  # before PyTorch, as in every command

    if threads is not None:
        choose(threads or None)

    import torch

    from sde_gen.commands.config import resolve
    from sde_gen.commands.run_data import check, load_data
    from sde_gen.training.trainer import Trainer

    config = resolve()
    data = load_data(config)
    model = check(config, data)
    trainer = Trainer(model, data.train, config.training, None, data.test, data.levels, "cpu")
    with trainer.running():
        per_step = mean_seconds(trainer.advance, steps)
    model.eval()
    x = torch.randn(100, *data.shape)
    with torch.no_grad():
        per_call = mean_seconds(lambda: model.denoise(x, 0.5), calls)
    return {"step": per_step, "call": per_call, "threads": torch.get_num_threads()}


def mean_seconds(do: Any, times: int) -> float:
    """Mean seconds of `do` over so many times, fewer where they last longer than `MOST`, after up to three that do not count."""
    took: list[float] = []
    for number in (3, times):
        took.clear()
        while len(took) < number and sum(took) < MOST:
            began = time.perf_counter()
            do()
            took.append(time.perf_counter() - began)
    return statistics.fmean(took)


@contextmanager
def busy_process(wanted: bool) -> Any:
    """One core's worth of other work while this lasts, where it is wanted; it ends with this process too."""
    if not wanted:
        yield
        return
    spin = f"import os\nwhile os.getppid() == {os.getpid()}:\n    for _ in range(10**6):\n        pass"
    process = subprocess.Popen([sys.executable, "-c", spin])
    try:
        time.sleep(0.3)  # until it runs
        yield
    finally:
        process.kill()
        process.wait()


def measure(name: str, steps: int, calls: int) -> dict[str, float]:
    """One case in a process of its own."""
    busy, given, threads = CASES[name]
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in ours} | given
    command = [sys.executable, str(HERE / "busy_machine.py"), "--work", json.dumps([threads, steps, calls])]
    with busy_process(busy):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {"median": middle, "lower": low, "upper": high}


def summarise(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Times of each case and the ratios that have targets, from the rounds."""
    times = {name: {kind: spread([found[name][kind] for found in rounds]) for kind in KINDS} for name in CASES}
    ratios: dict[str, Any] = {}
    for name, (against, target) in [*TARGETS.items(), *((n, ("busy, one", None)) for n in ("busy, spinning", "busy, all"))]:
        for kind in KINDS:
            ratio = spread([found[name][kind] / found[against][kind] for found in rounds])
            ratios[f"{name} / {against}, {kind}"] = ratio | ({} if target is None else {"target": target, "met": ratio["median"] <= target})
    return {"seconds": times, "ratios": ratios}


def table(result: dict[str, Any]) -> str:
    lines = ["| case | training step of 64, ms | network call for 100, ms | threads |", "|---|---|---|---|"]
    for name, found in result["seconds"].items():
        step, call = (f"{1e3 * found[kind]['median']:.1f}" for kind in KINDS)
        lines.append(f"| {name} | {step} | {call} | {result['threads'][name]} |")
    lines += ["", "| ratio | median (quartiles) | target |", "|---|---|---|"]
    for name, ratio in result["ratios"].items():
        target = f"at most {ratio['target']}: {'met' if ratio['met'] else 'MISSED'}" if "target" in ratio else ""
        lines.append(f"| {name} | {ratio['median']:.2f} ({ratio['lower']:.2f} to {ratio['upper']:.2f}) | {target} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a step and a call of each case, once: that it runs")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "busy_machine.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        print(json.dumps(work(*json.loads(arguments.work))))
        return 0
    from sde_gen.threads import cores, free_cores

    steps, calls, count = (1, 1, 1) if arguments.quick else (STEPS, CALLS, arguments.rounds)
    rounds, free = [], []
    began = time.monotonic()
    for number in range(count):
        free.append(free_cores())
        rounds.append({name: measure(name, steps, calls) for name in (list(CASES) if number % 2 == 0 else list(CASES)[::-1])})
    result = {"rounds": count, "steps": steps, "calls": calls, "cores": len(cores()), "free cores before each round": free}
    result |= {"threads": {name: sorted({int(found[name]["threads"]) for found in rounds}) for name in CASES}}
    result |= summarise(rounds) | {"seconds in all": time.monotonic() - began, "python": platform.python_version()}
    print(table(result))
    if not arguments.quick:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
