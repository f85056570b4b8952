"""Who writes to a directory: one process at a time, by a lock file that names it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

LOCK = "lock.json"
_held: dict[Path, list[int]] = {}
"""Directories that this process holds: its number, the thread, and how often that thread has entered."""


class LockError(ValueError):
    """Another process that still works writes to this directory; one line that names it."""


@dataclass(frozen=True)
class Process:
    """A process as a lock file or a temporary name gives it.

    started: when it began, in ticks since the machine did, since numbers are used again; "" where the system does not say.
    """

    pid: int
    host: str
    started: str = ""

    def ended(self) -> bool:
        """Whether it ran on this machine and is gone. False also for one of another machine, of which nothing can be known here."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass  # somebody else's, and alive
        now = _started(self.pid)
        return bool(self.started and now is not None and now != self.started)


def this_process() -> Process:
    """The process that asks."""
    return Process(os.getpid(), socket.gethostname(), _started(os.getpid()) or "")


def _started(pid: int) -> str | None:
    """When a process began, "gone" for one that has ended and is still listed; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "gone" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None


@contextlib.contextmanager
def held(directory: Path, remedy: str = "wait for it") -> Iterator[None]:
    """The directory, which must exist, is this thread's to write to until the block ends; blocks may stand inside one another.

    `lock.json` in it names the holder: process, host and since when. The lock of a process of this host that has ended is taken
    over. Raises LockError where another process, or another thread of this one, holds it; `remedy` says what can be done then.
    """
    key, me = directory.resolve(), [os.getpid(), threading.get_ident()]
    mine = _held.get(key)
    if mine is not None and mine[:2] == me:
        mine[2] += 1
        try:
            yield
        finally:
            mine[2] -= 1
        return
    path, process = key / LOCK, this_process()
    text = json.dumps(asdict(process) | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}, indent=1) + "\n"
    with _alone(key):
        other = _holder(path)
        if other is not None and not other[0].ended():
            holder, since = other
            far = "" if holder.host == process.host else f"; delete {directory / LOCK} if that process is gone"
            raise LockError(f"{directory} is in use by process {holder.pid} on {holder.host} since {since}: {remedy}{far}")
        path.write_text(text, encoding="utf-8")
        _held[key] = [*me, 1]
    try:
        yield
    finally:
        del _held[key]
        with contextlib.suppress(OSError), _alone(key):  # the directory may be gone
            if path.read_text(encoding="utf-8") == text:
                path.unlink()


def _holder(path: Path) -> tuple[Process, str] | None:
    """Whom a lock file names; None where there is none, or it is not whole: its writer died in the middle."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Process(int(values["pid"]), str(values["host"]), str(values["started"])), str(values["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """No other process is in a block of this directory, as far as its file system can tell; blocks are short."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
