"""Every bad data file is one line that names it, from Python and from the command line, before any work."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import Command

from sde_gen.data import load_dataset

RNG = np.random.default_rng(0)
GREY = RNG.integers(256, size=(6, 6), dtype=np.uint8)
COLOUR = RNG.integers(256, size=(6, 6, 3), dtype=np.uint8)


class Planted:
    """Runs when it is unpickled."""

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (Path("executed").touch, ())


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey() -> bytes:
    return encoded(Image.fromarray(RNG.integers(256, size=(6, 6), dtype=np.uint8)))


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def folder(**files: bytes) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        (root / "pictures").mkdir()
        (root / "pictures" / "a.png").write_bytes(grey())
        for name, content in files.items():
            (root / "pictures" / name.replace("__", ".")).write_bytes(content)
        return "pictures"

    return make


def file(name: str, content: bytes | str) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return make


def tar(*entries: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, size: int | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content) if size is None else size
            archive.addfile(info, io.BytesIO(content)) if size is None else buffer.write(info.tobuf())
    return buffer.getvalue()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def directory(name: str) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        (root / name).mkdir()
        return name

    return make


WHOLE = np.random.default_rng(1).normal(size=(20, 3))
HOLED = np.where(np.arange(60).reshape(20, 3) == 31, np.nan, WHOLE)
TWO = [("a.png", grey()), ("b.png", grey())]
BAD: dict[str, tuple[Callable[[Path], str], str]] = {
    "truncated npy": (file("cut.npy", npy(WHOLE)[:-9]), "cut.npy cannot be read .*complete .npy"),
    "npy cut in its header": (file("cut.npy", npy(WHOLE)[:40]), "cut.npy cannot be read"),
    "empty npy": (file("empty.npy", b""), "empty.npy: empty"),
    "npy without items": (file("none.npy", npy(np.zeros((0, 3)))), r"none.npy: shape \(0, 3\)"),
    "object array": (file("objects.npy", npy(np.array([Planted(), 1], object), True)), "objects.npy .*objects"),
    "pickle named npy": (file("p.npy", pickle.dumps(Planted())), "p.npy: its content is not"),
    "text array": (file("words.npy", npy(np.array(["a", "b"]))), "words.npy: holds <U1"),
    "complex array": (file("c.npy", npy(WHOLE.astype(complex))), "c.npy: holds complex128"),
    "one axis": (file("line.npy", npy(WHOLE[:, 0])), r"line.npy: shape \(20,\)"),
    "six axes": (file("six.npy", npy(np.zeros((2,) * 6))), "six.npy: shape"),
    "NaN": (file("holes.npy", npy(HOLED)), "holes.npy.*item 10 holds NaN"),
    "beyond float32": (file("huge.npy", npy(WHOLE * 1e300)), "huge.npy.*float32"),
    "constant": (file("same.npy", npy(np.ones((20, 3)))), "same.npy.*constant data"),
    "one item": (file("one.npy", npy(WHOLE[:1])), "one.npy.*1 training item"),
    "directory named npy": (directory("folder.npy"), "folder.npy: a directory"),
    "absent": (lambda root: "absent.npy", "absent.npy: no such file"),
    "wrong extension": (file("data.pkl", pickle.dumps(Planted())), r"data.pkl: not a known kind of file.*\.npy"),
    "image named npy": (file("image.npy", grey()), "image.npy: its content is not"),
    "npz without our names": (file("odd.npz", zipped(a__npy=npy(WHOLE), b__npy=npy(WHOLE))), "odd.npz: holds arrays a, b; one named train"),
    "npz of objects": (file("o.npz", zipped(x__npy=npy(np.array([Planted()], object), True))), "o.npz: x .*cannot be read"),
    "npz with labels missing": (file("l.npz", zipped(x__npy=npy(WHOLE), y__npy=npy(np.zeros(3)))), r"l.npz: labels of shape \(3,\) for 20"),
    "truncated npz": (file("cut.npz", zipped(x__npy=npy(WHOLE))[:-30]), "cut.npz: cannot be read"),
    "empty folder": (directory("nothing"), "nothing: no images among its 0"),
    "folder of text": (file("x.txt", ""), "x.txt: empty"),
    "mixed sizes": (
        folder(b__png=encoded(Image.fromarray(GREY[:5]))),
        r"b.png \(6 x 5, L\) is not like pictures/a.png \(6 x 6, L\).*data.size",
    ),
    "mixed modes": (folder(b__png=encoded(Image.fromarray(COLOUR))), r"b.png \(6 x 6, RGB\) is not like pictures/a.png"),
    "16-bit colour": (folder(a__png=png(6, 6, 16, 2, bytes(6 * 37))), "pictures/a.png: 16-bit colour.*allowed"),
    "CMYK": (folder(a__jpg=encoded(Image.new("CMYK", (6, 6)), "JPEG")), "pictures/a.jpg: mode CMYK.*allowed"),
    "RGBA": (folder(a__png=encoded(Image.new("RGBA", (6, 6)))), "pictures/a.png: mode RGBA.*allowed"),
    "transparent palette": (folder(a__gif=encoded(Image.new("P", (6, 6)), "GIF", transparency=0)), "pictures/a.gif: has transparency"),
    "animation": (
        folder(a__gif=encoded(Image.new("L", (6, 6)), "GIF", save_all=True, append_images=[Image.new("L", (6, 6), 9)])),
        "pictures/a.gif: 2 frames",
    ),
    "floating-point image": (folder(a__tif=encoded(Image.new("F", (6, 6)), "TIFF")), "pictures/a.tif: mode F"),
    "empty image": (folder(b__png=b""), "pictures/b.png: .*the file is empty"),
    "truncated png": (folder(b__png=grey()[:-30]), "pictures/b.png: cannot be read"),
    "truncated jpeg": (folder(a__jpg=encoded(Image.fromarray(np.tile(GREY, (9, 9))), "JPEG")[:-60]), "pictures/a.jpg: cannot be read"),
    "text named png": (folder(b__png=b"hello"), "pictures/b.png: cannot be read"),
    "png bomb": (folder(a__png=png(60_000, 60_000, 1, 0, bytes(1000))), "pictures/a.png: .*pixels"),
    "large png": (folder(a__png=png(9_000, 9_000, 1, 0, bytes(1000))), "9000 x 9000 pixels; at most 67,108,864"),
    "tar that leaves": (file("up.tar", tar(*TWO, ("../../evil.png", grey()))), r"up.tar: '../../evil.png' leaves the archive"),
    "absolute tar": (file("abs.tar", tar(("/etc/evil.png", grey()))), "abs.tar: '/etc/evil.png' leaves"),
    "zip that leaves": (file("up.zip", zipped(**{"../evil.png": grey()})), "up.zip: '../evil.png' leaves"),
    "links only": (file("links.tar", tar(("a.png", b""), kind=tarfile.SYMTYPE)), r"links.tar: no images among its 1 file"),
    "truncated tar": (file("cut.tar", tar(*TWO)[:1100]), "cut.tar: cannot be read"),
    "damaged tar": (file("odd.tar", tar(*TWO)[:1024] + b"x" * 9000), "odd.tar: cannot be read.*end mark"),
    "truncated tar.gz": (file("cut.tar.gz", gzip.compress(tar(*TWO))[:-40]), "cut.tar.gz: cannot be read"),
    "no tar": (file("no.tar", b"hello" * 200), "no.tar: cannot be read"),
    "empty tar": (file("none.tar", tar()), "none.tar: no images"),
    "tar with an oversized header": (
        file("big.tgz", gzip.compress(tar(("x", b""), kind=tarfile.XHDTYPE, size=1 << 30))),
        "big.tgz: .*claims .*at most",
    ),
    "tar member too large": (file("big.tar", tar(("a.png", b""), size=1 << 32)), "big.tar: a.png: unpacks to 4,294,967,296 bytes; at most"),
    "no zip": (file("no.zip", b"PK hello"), "no.zip: cannot be read"),
    "csv with text": (file("t.csv", "a,b\n1,2\n3,four\n"), "t.csv: line 3, column 'b' holds 'four'"),
    "csv with a hole": (file("t.csv", "a,b\n1,2\n,4\n"), "t.csv: line 3, column 'a' holds nothing"),
    "csv with NaN": (file("t.csv", "1,2\n3,nan\n"), "t.csv: line 2, column '1' holds 'nan'"),
    "ragged csv": (file("t.csv", "1,2\n3,4\n5\n"), "t.csv: line 3 has 1 cells, line 1 has 2"),
    "csv of a header": (file("t.csv", "a,b\n"), "t.csv: a header but no numbers"),
    "binary csv": (file("t.csv", b"\xff\xfe\x00\x01"), "t.csv: cannot be read as a text table"),
    "decimal commas": (file("t.csv", "1,5;2,5\n1,0;2,0\n"), "t.csv: line 2"),
    "constant csv": (file("t.csv", "1,2\n" * 30), "t.csv.*constant"),
}


@pytest.mark.parametrize("fault", BAD)
def test_one_line_names_the_file_and_what_is_allowed(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = BAD[fault]
    name = make(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not Path("executed").exists() and not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize("fault", BAD)
def test_the_command_line_says_it_and_exits_with_2(fault: str, sde_gen_command: Command, tmp_path: Path) -> None:
    make, _ = BAD[fault]
    name = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, out, err = sde_gen_command("run", "--data", name)
    assert (code, out, len(err)) == (2, [], 1), err
    assert name.split("/")[0] in err[0]
    assert sorted(tmp_path.iterdir()) == before
