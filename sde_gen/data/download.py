"""Data sets from their public addresses: resumed where they were cut, checked before they get their name."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sde_gen.data.cifar import ARCHIVE
from sde_gen.data.errors import one_line

TIMEOUT = 30.0
ATTEMPTS = 5
"""How often a cut connection is taken up again before the rest is left for the next call."""
MOST_BYTES = 1 << 30
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Files:
    """Where a data set lies: addresses of its folder, tried in order, and the SHA-256 of each file."""

    addresses: tuple[str, ...]
    sha256: dict[str, str]


SOURCES: dict[str, Files] = {
    "mnist": Files(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion_mnist": Files(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "cifar10": Files(
        ("https://www.cs.toronto.edu/~kriz/",),
        {ARCHIVE: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    ),
}


def download(name: str, root: str | os.PathLike[str] | None, say: Callable[[str], None] = print) -> None:
    """Fetch the files of a data set into the directory `root`, made if need be; files that are there are left as they are.

    A file is written as <name>.part, taken up where it was cut (HTTP Range) in this call or a later one, and renamed once its
    SHA-256 is right; one whose SHA-256 is wrong is deleted.

    Args:
        name: a key of `SOURCES`.
        root: the directory.
        say: gets a line for each file.

    Raises:
        ValueError: a data set that is not in `SOURCES`, no root, no address that answers, or a file with a wrong SHA-256.
    """
    if name not in SOURCES:
        raise ValueError(f"data {name!r} cannot be downloaded; --download fetches {', '.join(SOURCES)}")
    if root is None:
        raise ValueError(f"data {name!r}: --download needs the directory to write to, --data-root DIR")
    root, files = Path(root), SOURCES[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"data {name!r}: cannot write to {root} ({one_line(error)}); a directory is needed") from error
    for file, sha256 in files.sha256.items():
        target = root / file
        if target.exists() or target.with_suffix("").exists():
            say(f"download  {target} is there")
            continue
        _fetch(target, [address + file for address in files.addresses], sha256, say)


def _fetch(target: Path, urls: list[str], sha256: str, say: Callable[[str], None]) -> None:
    part = target.with_name(f"{target.name}.part")
    reasons = []
    for url in urls:
        try:
            resumed = part.exists()
            _complete(url, part)
            found = _sha256(part)
            if found != sha256 and resumed:  # its beginning may have been another file's: once more, whole
                part.unlink()
                _complete(url, part)
                found = _sha256(part)
        except (OSError, http.client.HTTPException, ValueError) as error:  # HTTPError and URLError are OSErrors
            reasons.append(f"{url}: {_reason(error)}")
            continue
        if found == sha256:
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, target)
            say(f"download  {target}: {target.stat().st_size:,} bytes from {url}, SHA-256 as published")
            return
        part.unlink()
        reasons.append(f"{url}: SHA-256 {found[:16]}..., {sha256[:16]}... is needed")
    kept = f"; {part.stat().st_size:,} bytes are kept in {part} and the next --download goes on there" if part.exists() else ""
    raise ValueError(f"cannot download {target.name} ({'; '.join(reasons)}){kept}")


def _complete(url: str, part: Path) -> None:
    """Bring `part` to its whole length, whatever of it is there."""
    for attempt in range(ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            if _continue(url, part, before):
                return
            error: Exception = ConnectionError("the connection was cut")
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as cut:
            error = cut
        if attempt == ATTEMPTS - 1 or not part.exists() or part.stat().st_size <= before:
            raise error


def _continue(url: str, part: Path, start: int) -> bool:
    """Append what the server has from byte `start` on; whether that was all."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send
            return True
        raise
    with response:
        goes_on = response.status == 206 and (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-")
        if response.status == 206 and not goes_on:
            raise ValueError(f"the server sent {response.headers.get('Content-Range')!r} where bytes from {start} were asked for")
        length = response.headers.get("Content-Length")
        size = start if goes_on else 0
        whole = None if length is None else size + int(length)
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := response.read(_CHUNK):
                size += len(chunk)
                if size > MOST_BYTES:
                    raise ValueError(f"more than {MOST_BYTES:,} bytes; no file of a known data set is as large")
                file.write(chunk)
    return whole is None or size >= whole


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}"
    return one_line(error.reason if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception) else error)
