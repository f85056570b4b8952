"""Against a file server on loopback: ranges, cuts, wrong content, missing files."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from toys import Command

from sde_gen.data import SOURCES, download
from sde_gen.data.download import Files

CONTENT = np.random.default_rng(0).integers(256, size=300_000, dtype=np.uint8).tobytes()


class Server(ThreadingHTTPServer):
    """`files` by path; each answer ends after the next of `cuts` bytes, while there are any; `ranges` whether Range is known."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, span = self.server, self.headers.get("Range")
        server.asked.append((self.path, span))
        content = server.files.get(self.path.strip("/"))
        if content is None:
            self.send_error(404, "Not Found")
            return
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and server.ranges else 0
        if span and server.ranges and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if span and server.ranges else 200)
        if span and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + server.cuts.pop(0)] if server.cuts else content[start:])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.files["x.gz"] = CONTENT
        monkeypatch.setitem(SOURCES, "toy", Files((running.address,), {"x.gz": hashlib.sha256(CONTENT).hexdigest()}))
        yield running
        running.shutdown()
        thread.join()


def test_a_file_arrives_whole_under_its_name_and_is_not_fetched_twice(server: Server, tmp_path: Path) -> None:
    lines: list[str] = []
    download("toy", tmp_path / "new" / "folder", lines.append)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["x.gz"]
    assert (tmp_path / "new" / "folder" / "x.gz").read_bytes() == CONTENT
    assert "300,000 bytes" in lines[0] and "SHA-256" in lines[0]
    download("toy", tmp_path / "new" / "folder", lines.append)
    assert len(server.asked) == 1 and "is there" in lines[1]


def test_a_cut_connection_is_taken_up_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 70_000]
    download("toy", tmp_path, print)
    assert (tmp_path / "x.gz").read_bytes() == CONTENT
    assert [span for _, span in server.asked] == [None, "bytes=100000-", "bytes=170000-"]


def test_what_was_kept_is_taken_up_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.cuts = [50_000, 0]
    with pytest.raises(ValueError, match=r"50,000 bytes are kept in .*x.gz.part and the next --download goes on") as caught:
        download("toy", tmp_path, print)
    assert "\n" not in str(caught.value) and not (tmp_path / "x.gz").exists()
    download("toy", tmp_path, print)
    assert server.asked[-1][1] == "bytes=50000-" and (tmp_path / "x.gz").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "x.gz.part").write_bytes(CONTENT[:1000])
    download("toy", tmp_path, print)
    assert (tmp_path / "x.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more", b"other" * 50_000])
def test_a_whole_a_longer_and_a_foreign_beginning(left: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.gz.part").write_bytes(left)
    download("toy", tmp_path, print)
    assert (tmp_path / "x.gz").read_bytes() == CONTENT and not (tmp_path / "x.gz.part").exists()


def test_wrong_content_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.files["x.gz"] = CONTENT[:-1] + b"?"
    with pytest.raises(ValueError, match=r"cannot download x.gz .*SHA-256 [0-9a-f]{16}\.\.\., [0-9a-f]{16}\.\.\. is needed") as caught:
        download("toy", tmp_path, print)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_missing_file_goes_to_the_next_address_and_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setitem(SOURCES, "toy", Files((other.address, server.address), SOURCES["toy"].sha256))
        download("toy", tmp_path / "a", print)
        assert len(other.asked) == 1 and (tmp_path / "a" / "x.gz").exists()
        server.files.clear()
        with pytest.raises(ValueError, match=r"x.gz: 404 Not Found; http.*404 Not Found\)$"):
            download("toy", tmp_path / "b", print)
        other.shutdown()
        thread.join()


def test_no_server_and_no_place_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "toy", Files(("http://127.0.0.1:9/",), {"x.gz": "0"}))
    with pytest.raises(ValueError, match=r"cannot download x\.gz .*refused"):
        download("toy", tmp_path, print)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="cannot write to"):
        download("toy", tmp_path / "file", print)
    with pytest.raises(ValueError, match="needs the directory"):
        download("toy", None)
    with pytest.raises(ValueError, match="data 'digits' cannot be downloaded; --download fetches mnist, fashion_mnist, cifar10"):
        download("digits", tmp_path)


def test_the_command_line(server: Server, sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = sde_gen_command("run", "--data", "fashion_mnist", "--data-root", str(tmp_path))
    assert code == 2 and len(err) == 1 and "train-images-idx3-ubyte" in err[0] and "--download fetches them" in err[0]
    monkeypatch.setitem(SOURCES, "fashion_mnist", SOURCES["toy"])
    code, out, err = sde_gen_command("run", "--data", "fashion_mnist", "--data-root", "here", "--download")
    assert code == 2 and len(err) == 1 and "lacks" in err[0] and "300,000 bytes" in out[0]
    assert (tmp_path / "here" / "x.gz").read_bytes() == CONTENT
    code, _, err = sde_gen_command("run", "--download")
    assert code == 2 and len(err) == 1 and "'digits' cannot be downloaded" in err[0]


def test_the_published_addresses_are_whole() -> None:
    for name in ("mnist", "fashion_mnist", "cifar10"):
        files = SOURCES[name]
        assert all(address.startswith("http") and address.endswith("/") for address in files.addresses)
        assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in files.sha256.values())
