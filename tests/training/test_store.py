"""Versions of a checkpoint: whole or not there, whenever the process dies and whatever happens to the files."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sde_gen
from sde_gen import CheckpointError
from sde_gen.locks import Process, this_process
from sde_gen.training import TrainSettings, build_model, fit, read_extra, read_state, save, store
from sde_gen.training.store import KEPT, newest, versions, write_version


def writes(text: str) -> dict[str, Callable[[Path], object]]:
    return {"a.txt": lambda file: file.write_text(text), "b.txt": lambda file: file.write_text(text * 100)}


def test_two_versions_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for number in range(4):
        write_version(tmp_path / "c", writes(str(number)))
    found = versions(tmp_path / "c")
    assert [path.name for path in found] == ["00000004", "00000003"] and len(found) == KEPT
    assert [(path / "a.txt").read_text() for path in found] == ["3", "2"]


def test_what_a_dead_process_left_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / "c" / ".part-old").mkdir(parents=True)
    write_version(tmp_path / "c", writes("x"))
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["00000001"]


def part_of(process: Process, path: Path) -> Path:
    part = path / f".part-{process.pid}.{process.started}.{process.host}.abc"
    part.mkdir(parents=True)
    return part


def test_the_part_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    me = this_process()
    living = part_of(me, tmp_path / "c")
    elsewhere = part_of(Process(1, "another.host", "7"), tmp_path / "c")
    old = part_of(Process(2, "another.host", "7"), tmp_path / "c")
    os.utime(old, (0, 0))
    dead = part_of(Process(2**22 + 1, me.host, ""), tmp_path / "c")
    write_version(tmp_path / "c", writes("x"))
    assert living.exists() and elsewhere.exists() and not dead.exists() and not old.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_many_writers_each_write_every_version(tmp_path: Path) -> None:
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            code = 0
            try:
                for _ in range(20):
                    write_version(tmp_path / "c", writes(str(number)))
            except BaseException:
                code = 1
            os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    found = versions(tmp_path / "c")
    assert found[0].name == f"{60:08d}" and KEPT <= len(found) < KEPT + 3
    assert newest(tmp_path / "c") == found[0] and not list((tmp_path / "c").glob(".part-*"))


def test_a_number_that_another_writer_took_meanwhile_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_version(tmp_path / "c", writes("theirs"))
    known = [[], versions(tmp_path / "c")]  # the other writer's version appears after the first look
    monkeypatch.setattr(store, "versions", lambda path: known.pop(0) if known else versions(path))
    assert write_version(tmp_path / "c", writes("ours")).name == "00000002"
    assert (tmp_path / "c" / "00000001" / "a.txt").read_text() == "theirs"


@pytest.mark.parametrize("kind", ["full disk", "read-only"])
def test_a_write_that_fails_changes_nothing(kind: str, tmp_path: Path) -> None:
    write_version(tmp_path / "c", writes("old"))

    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError(28 if kind == "full disk" else 30, "No space left on device" if kind == "full disk" else "Read-only file system")

    with pytest.raises(OSError):
        write_version(tmp_path / "c", {**writes("new"), "c.txt": fail})
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["00000001"]
    assert (versions(tmp_path / "c")[0] / "a.txt").read_text() == "old"


def tiny(seed: int = 0) -> sde_gen.ScoreModel:
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    return build_model(data, "vp", "mlp", network_options={"width": 16, "depth": 1}, seed=seed)


@pytest.mark.parametrize("trial", range(10))
def test_truncated_or_flipped_files_fall_back_to_the_version_before(trial: int, tmp_path: Path) -> None:
    chance = random.Random(trial)
    for number in (1, 2):
        save(tiny(number), tmp_path / "c", extra={"step": number})
    newest = versions(tmp_path / "c")[0]
    file = chance.choice(sorted(newest.iterdir()))
    content = bytearray(file.read_bytes())
    if chance.random() < 0.5:
        file.write_bytes(content[: chance.randrange(len(content))])
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
    if file.name == "manifest.json" and read_quietly(tmp_path / "c") == 2:
        return  # a bit of white space, say: nothing that counts has changed
    with pytest.warns(UserWarning, match="is damaged"):
        assert read_extra(tmp_path / "c") == {"step": 1}
    with pytest.warns(UserWarning, match="00000001 is used instead"):
        loaded = sde_gen.load(tmp_path / "c")
    assert torch.equal(next(loaded.network.parameters()), next(tiny(1).network.parameters()))


def read_quietly(path: Path) -> int:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return int(read_extra(path)["step"])


def test_all_damaged_is_one_line(tmp_path: Path) -> None:
    save(tiny(), tmp_path / "c")
    for version in versions(tmp_path / "c"):
        (version / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no readable checkpoint at .*00000001: weights.safetensors has 0 bytes of") as caught:
        sde_gen.load(tmp_path / "c")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_kill_9_at_random_moments_loses_nothing(inside: bool, tmp_path: Path) -> None:
    """A child trains and saves every few milliseconds; it is killed at random moments, in half of them during a save. What it had
    saved is there, can be read, and is at most one interval old."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child must not wait for threads that it does not have
    chance = random.Random(inside)
    path = tmp_path / "c"
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    try:
        for _ in range(8):
            readable, writable = os.pipe()
            child = os.fork()
            if child == 0:
                train_until_killed(data, path, writable)
                os._exit(1)
            os.close(writable)
            begun = saved = -1
            deadline = time.monotonic() + chance.uniform(0.02, 0.3)
            while time.monotonic() < deadline or (inside and begun == saved):
                mark = os.read(readable, 5)
                assert mark, "the child died by itself"
                step = int.from_bytes(mark[1:], "big")
                begun, saved = (step, saved) if mark[:1] == b"b" else (begun, step)
            if inside:
                time.sleep(chance.uniform(0, 0.004))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            while mark := os.read(readable, 5):
                step = int.from_bytes(mark[1:], "big")
                begun, saved = (step, saved) if mark[:1] == b"b" else (begun, step)
            os.close(readable)
            if saved < 0:
                continue
            found = read_state(path)
            assert found is not None and found[1]["step"] in (saved, begun)
            sde_gen.load(path)
    finally:
        torch.set_num_threads(threads)


def train_until_killed(data: torch.Tensor, path: Path, pipe: int) -> None:
    def keep(step: int, result) -> None:
        os.write(pipe, b"b" + step.to_bytes(4, "big"))
        save(result.raw, path, ema=result.model.network, state=result.state())
        os.write(pipe, b"e" + step.to_bytes(4, "big"))

    resume = read_state(path) if versions(path) else None
    settings = TrainSettings(steps=1_000_000, batch=8, warmup=0, evaluations=1)
    fit(tiny(), data, settings, progress=False, on_checkpoint=keep, checkpoint_seconds=1e-4, resume=resume)
