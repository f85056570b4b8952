"""Files in tar and zip archives, read one by one in memory: nothing is unpacked onto the disk."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from sde_gen.data.decode import read_limited
from sde_gen.data.errors import one_line

ENDINGS = (".tar", ".tar.gz", ".tgz", ".zip")
MOST_MEMBER = 256 << 20
MOST_TOTAL = 16 << 30
"""Bytes that one file in an archive, and all of it, may unpack to: larger data sets belong in a folder or an .npy file."""
_PADDING = 4 << 20

Wanted = Callable[[str], bool]


def members(path: Path, wanted: Wanted) -> Iterator[tuple[str, bytes | None]]:
    """(name, content) of every file in an archive in its own order; content is None where `wanted(name)` is not true, and for links
    and devices, which are never followed.

    Raises:
        ValueError: not an archive or a damaged one, a name that leaves it (absolute or with ..), encryption, or too many bytes.
    """
    try:
        yield from (_zip if path.suffix.lower() == ".zip" else _tar)(path, wanted)
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path.name}: cannot be read ({one_line(error)}); a complete {' or '.join(ENDINGS)} archive is needed") from error


def _tar(path: Path, wanted: Wanted) -> Iterator[tuple[str, bytes | None]]:
    with cast(BinaryIO, path.open("rb") if path.suffix.lower() == ".tar" else gzip.open(path, "rb")) as raw:
        limited: Any = _Limited(raw, path.name)
        with tarfile.open(fileobj=limited, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                name = _checked(path, member.name)
                if member.isdir():
                    continue
                if member.size > MOST_MEMBER and wanted(name):
                    raise ValueError(f"{path.name}: {name}: unpacks to {member.size:,} bytes; {_limits()}")
                file = archive.extractfile(member) if member.isfile() and wanted(name) else None
                yield name, None if file is None else read_limited(cast(BinaryIO, file), f"{path.name}: {name}", MOST_MEMBER)
            end = archive.offset
        limited.seek(end)
        if limited.read(512) != bytes(512):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"its end mark is missing at byte {end}")
        if len(limited.read(_PADDING)) == _PADDING:  # reading to the end checks gzip's sum
            raise tarfile.ReadError(f"{_PADDING} bytes or more follow its end mark")


def _zip(path: Path, wanted: Wanted) -> Iterator[tuple[str, bytes | None]]:
    with zipfile.ZipFile(path) as archive:
        total = 0
        for info in archive.infolist():
            name = _checked(path, info.filename)
            if info.is_dir():
                continue
            link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if link or not wanted(name):
                yield name, None
                continue
            total += info.file_size
            if info.file_size > MOST_MEMBER or total > MOST_TOTAL:
                raise ValueError(f"{path.name}: {name}: unpacks to {info.file_size:,} bytes; {_limits()}")
            with archive.open(info) as file:
                yield name, read_limited(cast(BinaryIO, file), f"{path.name}: {name}", MOST_MEMBER)


def _checked(path: Path, name: str) -> str:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or name[1:2] == ":":
        raise ValueError(f"{path.name}: {name[:100]!r} leaves the archive; relative names without .. are allowed")
    return "/".join(part for part in parts if part != ".")


def _limits() -> str:
    return f"at most {MOST_MEMBER:,} a file and {MOST_TOTAL:,} in all are allowed"


class _Limited:
    """A file that refuses to hand out more than the limits, whatever sizes the headers inside it claim."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name = file, name

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_MEMBER:
            raise ValueError(f"{self.name}: a header claims {size:,} bytes; {_limits()}")
        return self.file.read(size)

    def seek(self, position: int) -> int:
        if position > MOST_TOTAL:
            raise ValueError(f"{self.name}: unpacks to more than {MOST_TOTAL:,} bytes; {_limits()}")
        return self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()
