"""Versions of a directory of files: a new one is whole or it is not there, and the one before stays until then."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import CheckpointError
from ..locks import Process, this_process

MANIFEST = "manifest.json"
KEPT = 2
"""Versions that stay: the newest, and the one before it, should the newest turn out to be damaged."""
MOST_MANIFEST = 1 << 20
"""Bytes of a manifest beyond which it is not read."""
_PART = ".part-"
_OLD = 86_400.0
"""Seconds after which a part of another machine, of whose processes nothing can be known here, counts as left behind."""


def write_version(path: Path, files: Mapping[str, Callable[[Path], None]]) -> Path:
    """Write a new version of the directory `path`: each of `files` is called with the file that it is to write.

    The version is a directory written under a temporary name, every file and the directory synced, with a manifest of SHA-256 sums,
    then renamed and the parent synced; older versions beyond `KEPT` are deleted after that. Whenever the process dies, the versions
    that were there are there, and a new one counts only when it is whole. Several processes may write at a time: each version is of
    one of them. OSError where the disk is full or cannot be written to: what was there stays.
    """
    path.mkdir(parents=True, exist_ok=True)
    for left in path.glob(f"{_PART}*"):
        if _left_behind(left):
            shutil.rmtree(left, ignore_errors=True)
    me = this_process()
    part = Path(tempfile.mkdtemp(prefix=f"{_PART}{me.pid}.{me.started}.{me.host}.", dir=path))
    try:
        for name, write in files.items():
            write(part / name)
        sums = {name: {"sha256": _digest(part / name), "bytes": (part / name).stat().st_size} for name in files}
        (part / MANIFEST).write_text(json.dumps({"files": sums}, indent=1) + "\n", encoding="utf-8")
        for name in (*files, MANIFEST):
            _sync(part / name)
        part.chmod(0o755)  # mkdtemp's is for its owner alone
        _sync(part)
        version = _take_number(part, path)
        _sync(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in versions(path)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return version


def _left_behind(part: Path) -> bool:
    """Whether the process that was writing this part has ended."""
    pid, _, rest = part.name.removeprefix(_PART).partition(".")
    started, _, rest = rest.partition(".")
    host = rest.rpartition(".")[0]
    if not pid.isdecimal() or not host:  # not of this form, which names the writer
        return True
    if host == this_process().host:
        return Process(int(pid), host, started).ended()
    try:
        return time.time() - part.stat().st_mtime > _OLD
    except OSError:
        return False  # it has just become a version, or gone


def _take_number(part: Path, path: Path) -> Path:
    """Rename a part to the version after the newest one; another process may be about to take the same number."""
    while True:
        known = versions(path)
        version = path / f"{int(known[0].name) + 1 if known else 1:08d}"
        try:
            part.rename(version)
            return version
        except OSError:
            if not version.exists():
                raise


def versions(path: Path) -> list[Path]:
    """The versions in the directory `path`, the newest first, whole or not."""
    if not path.is_dir():
        return []
    return sorted((entry for entry in path.iterdir() if re.fullmatch(r"\d{8}", entry.name)), key=lambda entry: -int(entry.name))


def newest(path: Path) -> Path:
    """The newest version in `path` whose files are what its manifest says; a warning names each newer one that is damaged.
    CheckpointError where there is none."""
    reasons: list[tuple[Path, str]] = []
    for version in versions(path):
        reason = fault(version)
        if reason is None:
            for damaged, why in reasons:
                warnings.warn(f"checkpoint {damaged} is damaged ({why}); {version} is used instead", stacklevel=3)
            return version
        reasons.append((version, reason))
    if not reasons:
        raise CheckpointError(f"no checkpoint at {path}")
    raise CheckpointError(f"no readable checkpoint at {path}: " + "; ".join(f"{version.name}: {why}" for version, why in reasons))


def fault(version: Path) -> str | None:
    """What is wrong with a version, or None."""
    try:
        if not (version / MANIFEST).is_file():  # a pipe would be waited for
            return f"{MANIFEST} is not there or no plain file"
        if (version / MANIFEST).stat().st_size > MOST_MANIFEST:
            return f"{MANIFEST} has more than {MOST_MANIFEST} bytes"
        sums = json.loads((version / MANIFEST).read_text(encoding="utf-8"))["files"]
        if not sums:
            return f"{MANIFEST} lists no file"
        for name, known in sums.items():
            if Path(name).name != name:
                return f"{MANIFEST} names a file elsewhere"
            if (version / name).exists() and not (version / name).is_file():
                return f"{name} is no plain file"
            if (version / name).stat().st_size != known["bytes"]:
                return f"{name} has {(version / name).stat().st_size} bytes of {known['bytes']}"
            if _digest(version / name) != known["sha256"]:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or MANIFEST).name}: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
