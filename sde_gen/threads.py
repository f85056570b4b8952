"""Threads that suit a machine on which others work too. Imported before PyTorch, so that what it sets is there when OpenMP is loaded.

OpenMP's threads spin while they wait for one another, GNU's for 300,000 turns: where another process has a core, they hold the others
and wait for what cannot go on. `GOMP_SPINCOUNT` is set to a thousand turns in the environment, unless the user has set it or
`OMP_WAIT_POLICY`, or PyTorch is loaded already; the processes started from here inherit it. On free cores it costs nothing, and no
number changes.

The number of threads does change the last bits of a result: a command takes as many as cores are free when it starts (`choose`), a run
records the number, and a training that goes on keeps the one that it began with (`keep`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, MutableMapping

SPINS = "1000"
WATCHED = 0.3
"""Seconds over which the cores are looked at."""
OF_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Where the environment has one of these, the user has chosen the number of threads."""


def set_spinning(environ: MutableMapping[str, str] = os.environ, loaded: bool | None = None) -> None:
    """Let waiting OpenMP threads sleep after `SPINS` turns; `loaded`: whether PyTorch is (None: as it is)."""
    loaded = "torch" in sys.modules if loaded is None else loaded
    if not loaded and "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", SPINS)


set_spinning()


def cores() -> set[int]:
    """The numbers of the cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def busy_seconds(stat: str, chosen: set[int]) -> tuple[float, float]:
    """Of the text of /proc/stat: the time that the chosen cores have worked and all their time, in clock ticks.

    Waiting for the disk counts as free, and so does what a guest has taken, which is in the user's time already.
    """
    busy = total = 0.0
    for line in stat.splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in chosen:
            ticks = [float(value) for value in values[:8]]
            total += sum(ticks)
            busy += sum(ticks) - sum(ticks[3:5])
    return busy, total


def _read_stat() -> str:
    with open("/proc/stat", encoding="ascii") as file:
        return file.read()


def free_cores(read: Callable[[], str] = _read_stat, wait: Callable[[float], object] = time.sleep, chosen: set[int] | None = None) -> int:
    """How many of the cores that this process may run on are free, at least 1: by /proc/stat over `WATCHED` seconds, in which this
    process sleeps, or by the load of the last minute where there is none.

    read: gives the text of /proc/stat. wait: sleeps for so many seconds. chosen: the cores.
    """
    chosen = cores() if chosen is None else chosen
    try:
        before = busy_seconds(read(), chosen)
        wait(WATCHED)
        after = busy_seconds(read(), chosen)
        passed = after[1] - before[1]
        busy = (after[0] - before[0]) / passed * len(chosen) if passed > 0 else 0.0
    except (OSError, ValueError):
        busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, len(chosen) - round(busy))


def choose(asked: int | None = None, free: Callable[[], int] = free_cores) -> str | None:
    """Take `asked` threads for a command's work, or, unless the environment says how many, as many as cores are free, at most as many as
    PyTorch would take. Returns a line where there are fewer than that, else None.

    Under torchrun the number is the launcher's. Raises ValueError for a number below 1.
    """
    import torch

    most = torch.get_num_threads()
    if asked is not None:
        if asked < 1:
            raise ValueError(f"--threads must be at least 1, got {asked}")
        torch.set_num_threads(asked)
        return None
    if most == 1 or _chosen_by_user() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return None
    count = min(most, free())
    if count == most:
        return None
    torch.set_num_threads(count)
    others = "the other is" if most == 2 else "one is" if most - count == 1 else f"{most - count} are"
    return f"{count} of {most} cores: {others} busy; --threads N takes N"


def keep(began: int, asked: int | None = None) -> str | None:
    """Go on with a training that began with so many threads, on which its last bits depend. Returns a line where that is another number
    than there was, or where the user has chosen another (`asked`, or the environment), which stays.
    """
    import torch

    now = torch.get_num_threads()
    if began == now:
        return None
    if asked is not None or _chosen_by_user():
        return f"{now}, where the training began with {began}: its last bits will be others than with {began}"
    torch.set_num_threads(began)
    return f"{began}, as the training began, so that its numbers stay the same; --threads N takes N"


def _chosen_by_user() -> bool:
    return any(os.environ.get(name) for name in OF_USER)
