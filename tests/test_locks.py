"""One writer at a time, whatever dies."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sde_gen.locks import LOCK, LockError, Process, held, this_process

HOLDER = """
import sys, time
from pathlib import Path
from sde_gen.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def other_process(directory: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def test_the_second_process_is_told_who_the_first_is_and_takes_over_when_it_is_killed(tmp_path: Path) -> None:
    child = other_process(tmp_path)
    try:
        with (
            pytest.raises(LockError, match=f"in use by process {child.pid} on {socket.gethostname()} since 2.*: wait for it$"),
            held(tmp_path),
        ):
            pass
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == child.pid, "and it is still there"
    finally:
        child.send_signal(signal.SIGKILL)
    values = json.loads((tmp_path / LOCK).read_text())
    deadline = time.monotonic() + 10
    while not Process(values["pid"], values["host"], values["started"]).ended() and time.monotonic() < deadline:
        time.sleep(0.01)  # not waited for, it is still listed then, as a zombie
    with held(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()
    child.wait()


def test_blocks_of_one_thread_may_stand_inside_one_another_those_of_two_threads_not(tmp_path: Path) -> None:
    errors: list[str] = []

    def enter() -> None:
        try:
            with held(tmp_path):
                pass
        except LockError as error:
            errors.append(str(error))

    with held(tmp_path):
        with held(tmp_path / "." / ".." / tmp_path.name):
            pass
        assert (tmp_path / LOCK).exists()
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(errors) == 1 and str(os.getpid()) in errors[0] and not (tmp_path / LOCK).exists()
    enter()
    assert len(errors) == 1


def test_the_lock_of_another_machine_is_not_taken_over(tmp_path: Path) -> None:
    values = {"pid": 2**22 + 1, "host": "elsewhere", "started": "1", "since": "2026-01-02 03:04:05"}
    (tmp_path / LOCK).write_text(json.dumps(values))
    with (
        pytest.raises(LockError, match=r"on elsewhere since 2026-01-02 03:04:05.*; delete .*lock.json if that process is gone"),
        held(tmp_path),
    ):
        pass
    (tmp_path / LOCK).write_text(json.dumps(values | {"host": socket.gethostname()}))
    with held(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_file_that_is_not_whole_is_taken_over(text: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(text)
    with held(tmp_path):
        pass


def test_a_number_that_is_used_again_is_another_process() -> None:
    me = this_process()
    assert not me.ended() and not Process(me.pid, "elsewhere", "1").ended()
    assert Process(me.pid, me.host, "1").ended() == bool(me.started)


def test_looking_and_taking_are_one(tmp_path: Path) -> None:
    """While another process looks at the lock file, nobody takes it."""
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    entered = threading.Event()

    def enter() -> None:
        with held(tmp_path):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.3)
    os.close(handle)
    assert entered.wait(10)
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_of_many_processes_one_is_inside(tmp_path: Path) -> None:
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            code = 0
            try:
                for _ in range(40):
                    try:
                        with held(tmp_path):
                            os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))  # fails where another one is
                            (tmp_path / "inside").unlink()
                    except LockError:
                        pass
            except BaseException:
                code = 1
            os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    assert not (tmp_path / LOCK).exists()
