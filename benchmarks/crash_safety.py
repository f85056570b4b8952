"""What is lost when a training dies: kill -9 at random moments, checkpoints that are damaged, resumes, and repeats.

    python benchmarks/crash_safety.py

    kills       a child process trains a small network and saves every few milliseconds, state and all; it is killed (SIGKILL) at a
                random moment, every second time inside a save, and the next child goes on from what it left. A kill is `lost` where
                a save that had returned is not there, `unreadable` where `load` or `read_state` fails, and `redone` counts the
                intervals between saves that have to be trained again beyond the one that was under way.
    damage      a file of the newest version is truncated, or one of its bits flipped: `fell back` to the version before with a
                warning; `harmless` where what changed is no content (white space of the manifest); `unnoticed` and `unreadable` are
                failures.
    resume      N steps, a death and the rest against all steps at once, bit for bit: weights, average, optimiser, random states and
                losses; by the step of the death and the number of loader workers, data in memory and read from disk.
    repeats     train and sample again with the same seed: tensors that differ in any bit.

One thread, CPU. A kill lands inside a save by a pipe: the child says when a save begins and when it has returned.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sde_gen
from sde_gen.data.source import array_source
from sde_gen.training import CheckpointError, TrainResult, TrainSettings, build_model, fit, read_extra, read_state, save
from sde_gen.training.store import versions

HERE = Path(__file__).parent
OPTIONS = {"width": 64, "depth": 2, "dropout": 0.1}
STEPS = 24


def points() -> torch.Tensor:
    return torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1


def model(seed: int = 0) -> sde_gen.ScoreModel:
    return build_model(points(), "vp", "mlp", network_options=OPTIONS, seed=seed)


def train_until_killed(path: Path, pipe: int) -> None:
    """Train on from `path`, saving after every few steps; each save is announced on `pipe` when it begins and when it has returned."""

    def keep(step: int, result: TrainResult) -> None:
        os.write(pipe, b"b" + step.to_bytes(4, "big"))
        save(result.raw, path, ema=result.model.network, extra={"step": step}, state=result.state())
        os.write(pipe, b"e" + step.to_bytes(4, "big"))

    resume = read_state(path) if versions(path) else None
    settings = TrainSettings(steps=1_000_000, batch=8, warmup=0, evaluations=1)
    fit(model(), points(), settings, progress=False, on_checkpoint=keep, checkpoint_seconds=0.01, resume=resume)


class Child:
    """A process that trains, and what it has said of its saves: `begun` and `saved` are steps, -1 for none."""

    def __init__(self, path: Path) -> None:
        self.pipe, writable = os.pipe()
        self.begun = self.saved = -1
        self.saves: list[int] = []
        self.process = os.fork()
        if self.process == 0:
            try:
                os.close(self.pipe)
                train_until_killed(path, writable)
            finally:
                os._exit(1)
        os.close(writable)

    def listen(self) -> bool:
        """Wait for the next word; False where there will be none."""
        mark = os.read(self.pipe, 5)
        if not mark:
            return False
        step = int.from_bytes(mark[1:], "big")
        if mark[:1] == b"b":
            self.begun = step
        else:
            self.saved = step
            self.saves.append(step)
        return True

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        while self.listen():
            pass
        os.close(self.pipe)


def kills(count: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """`count` deaths, every second one inside a save; see the head of the file."""
    chance, path = random.Random(seed), folder / "kills"
    found = {"kills": 0, "inside a save": 0, "before the first save": 0, "lost": 0, "unreadable": 0, "redone": 0, "saves": 0}
    kept, pauses = -1, []
    for number in range(count):
        child, inside = Child(path), number % 2 == 1
        alive = child.listen()
        wait = time.monotonic() + chance.uniform(0.0, 0.15)
        while alive and (time.monotonic() < wait or (inside and child.begun == child.saved)):
            alive = child.listen()
        if not alive:
            raise RuntimeError("the child died by itself")
        time.sleep(chance.uniform(0.0, 0.004))
        child.kill()
        found["kills"] += 1
        found["saves"] += len(child.saves)
        found["inside a save"] += child.begun > child.saved
        last = child.saved if child.saved >= 0 else kept  # what must be there: the last save that returned, in this child or before
        if last < 0:
            found["before the first save"] += 1
        try:
            state = read_state(path) if versions(path) else None
            at = -1 if state is None else int(state[1]["step"])
            if at >= 0:
                sde_gen.load(path)
        except (CheckpointError, OSError):
            found["unreadable"] += 1
            continue
        if at < last:
            found["lost"] += 1
            found["redone"] += sum(step > at for step in child.saves)
        elif at not in (last, child.begun):
            raise RuntimeError(f"step {at} was read, and {last} and {child.begun} were written")
        pauses.append(child.begun - at if child.begun > at else 0)
        kept = at
    found["most steps between a save that was cut off and what was read"] = max(pauses, default=0)
    return found


def damage(count: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """`count` damaged files, half of them truncated and half with a bit flipped."""
    chance = random.Random(seed)
    found = {"truncated": 0, "bit flipped": 0, "fell back": 0, "harmless": 0, "unnoticed": 0, "unreadable": 0, "no warning": 0}
    weights = {number: next(model(number).network.parameters()) for number in (1, 2)}  # type: ignore[union-attr]
    state = fit(model(), points(), TrainSettings(steps=2, batch=8, evaluations=1), progress=False).state()
    for trial in range(count):
        path = folder / f"damage-{trial}"
        for number in (1, 2):
            save(model(number), path, extra={"step": number}, state=state)
        version = versions(path)[0]
        file = chance.choice(sorted(version.iterdir()))
        content = bytearray(file.read_bytes())
        if trial % 2:
            found["truncated"] += 1
            content = content[: chance.randrange(len(content))]
        else:
            found["bit flipped"] += 1
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                step, loaded = int(read_extra(path)["step"]), sde_gen.load(path)
                read_state(path)
            except (CheckpointError, OSError):
                found["unreadable"] += 1
                continue
        same = torch.equal(next(loaded.network.parameters()), weights[step])  # type: ignore[union-attr]
        if step == 1 and same:
            found["fell back"] += 1
            found["no warning"] += not any("is damaged" in str(warning.message) for warning in caught)
        elif same and file.name == "manifest.json":
            found["harmless"] += 1
        else:
            found["unnoticed"] += 1
    return found


class Stop(Exception):
    """The death of a training at the step where it was to die."""


def trained(settings: TrainSettings, data: Any, path: Path | None = None, stop: int | None = None, resume: bool = False) -> TrainResult:
    def keep(step: int, result: TrainResult) -> None:
        if step == stop and path is not None:
            save(result.raw, path, ema=result.model.network, state=result.state())
            raise Stop

    state = read_state(path) if resume and path is not None else None
    return fit(model(), data, settings, progress=False, on_checkpoint=keep, checkpoint_seconds=0.0, resume=state)


def everything(result: TrainResult) -> dict[str, Any]:
    """All that must be equal, clocks left out."""
    tensors, values = result.state()
    del tensors["random"]  # outside of the training it is that of the rest of the program
    tensors |= {f"raw.{k}": v for k, v in result.raw.network.state_dict().items()}  # type: ignore[union-attr]
    tensors |= {f"ema.{k}": v for k, v in result.model.network.state_dict().items()}  # type: ignore[union-attr]
    losses = [[v for k, v in entry.items() if k != "seconds"] for entry in values.pop("history")]
    return tensors | {"values": {k: v for k, v in values.items() if k != "seconds"} | {"losses": losses}}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what is not equal to the last bit."""

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)

    return [key for key in one.keys() | other.keys() if key not in one or key not in other or not same(one[key], other[key])]


def resumes(splits: int, workers: tuple[int, ...], folder: Path) -> list[dict[str, Any]]:
    """`splits` deaths for each number of workers and each kind of data, evenly over the training."""
    np.save(folder / "points.npy", points().numpy())
    on_disk = array_source(np.load(folder / "points.npy", mmap_mode="r"), "points.npy")
    found = []
    for kind, data in (("in memory", points()), ("on disk", on_disk)):
        for count in workers:
            settings = TrainSettings(steps=STEPS, batch=16, warmup=4, evaluations=3, workers=count)
            whole = everything(trained(settings, data))
            stops = sorted({int(step) for step in np.linspace(1, STEPS - 1, splits).round()})
            different = {}
            for stop in stops:
                path = folder / f"resume-{kind[:2]}-{count}-{stop}"
                try:
                    trained(settings, data, path, stop)
                except Stop:
                    torch.rand(stop)  # the global generator is elsewhere in another process
                    names = differences(whole, everything(trained(settings, data, path, resume=True)))
                    different |= {str(stop): names} if names else {}
            row = {"data": kind, "workers": count, "splits": len(stops), "tensors": len(whole), "different": different}
            found.append(row)
    return found


def repeats(count: int) -> dict[str, Any]:
    """Train and sample `count` times; how many times anything differed from the first."""
    first: dict[str, Any] | None = None
    different = 0
    for number in range(count):
        torch.rand(number)
        result = trained(TrainSettings(steps=STEPS, batch=16, warmup=4, evaluations=3), points())
        drawn = {name: sde_gen.sample(result.model, (16, 2), name, seed=3, progress=False).x for name in ("pc", "ancestral", "dpm")}
        made = everything(result) | drawn
        first = made if first is None else first
        different += bool(differences(first, made))
    return {"repeats": count, "different": different}


def table(result: dict[str, Any]) -> list[str]:
    killed, hurt, again = result["kills"], result["damage"], result["repeats"]
    cells = f"{killed['kills']} ({killed['inside a save']} inside a save)"
    lines = ["| what | how often | result |", "|---|---|---|"]
    redone = f"{killed['redone']} intervals redone beyond the one under way"
    lines.append(f"| kill -9 | {cells} | {killed['lost']} lost, {killed['unreadable']} unreadable, {redone} |")
    cells = f"{hurt['truncated']} truncated, {hurt['bit flipped']} bits flipped"
    good = f"{hurt['fell back']} fell back ({hurt['no warning']} without a warning), {hurt['harmless']} harmless"
    lines.append(f"| damage | {cells} | {good}, {hurt['unnoticed']} unnoticed, {hurt['unreadable']} unreadable |")
    for row in result["resume"]:
        where = f"resume, data {row['data']}, {row['workers']} workers"
        lines.append(
            f"| {where} | {row['splits']} split points | {len(row['different'])} different in {row['tensors']} tensors and losses |"
        )
    lines.append(f"| train and sample again | {again['repeats']} | {again['different']} different |")
    return lines


def timed(what: str, job: Callable[[], Any], seconds: dict[str, float]) -> Any:
    began = time.monotonic()
    found = job()
    seconds[what] = round(time.monotonic() - began, 1)
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damaged", type=int, default=100)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "crash_safety.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # a forked child must not wait for threads that it does not have
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {
            "versions": {"sde_gen": sde_gen.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "kills": timed("kills", lambda: kills(arguments.kills, folder), seconds),
            "damage": timed("damage", lambda: damage(arguments.damaged, folder), seconds),
            "resume": timed("resume", lambda: resumes(arguments.splits, tuple(arguments.workers), folder), seconds),
            "repeats": timed("repeats", lambda: repeats(arguments.repeats), seconds),
            "seconds": seconds,
        }
    print("\n".join(table(result)))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
