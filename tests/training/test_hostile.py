"""Files made to do harm: nothing in them is executed, none takes the machine's memory, and each is one line that names it.

Beside these, data/test_bad_files.py has: pickles named .npy and inside .npy and .npz (objects), png bombs, tar and zip members that
leave the archive, links in tars, oversized tar headers; data/test_download.py has downloads that are not what they should be,
test_config.py a YAML tag, training/test_store.py flipped and truncated checkpoints.
"""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import Command

import sde_gen
from sde_gen import CheckpointError
from sde_gen.commands.config import ConfigError, read_config, read_yaml, resolve
from sde_gen.data import load_dataset
from sde_gen.training import TrainSettings, build_model, fit, read_state, save

CANARY = "executed"
MANY = 1 << 20


class Planted:
    """Leaves a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path(CANARY).touch, ())


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def torch_saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(4, 2), "planted": Planted()}, buffer)
    return buffer.getvalue()


def npy_header(text: str, content: bytes = b"") -> bytes:
    head = text.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


def tar(*infos: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(b"\0" * info.size))
    return buffer.getvalue()


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def bomb(levels: int = 9) -> str:
    """YAML of 9^9 values, by aliases."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


EXECUTE = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{CANARY}']]"
CONFIGS: dict[str, tuple[str, str]] = {
    "a tag that calls": (f"sde: {EXECUTE}", "could not determine a constructor"),
    "a tag that imports": ("sde: !!python/name:os.system", "could not determine a constructor"),
    "a tag that makes an object": ("sde: !!python/object/new:os.system [touch executed]", "could not determine a constructor"),
    "aliases that multiply": (bomb(), r"aliases are not allowed, got \*a0"),
    "an alias of itself": ("&a [*a]", "aliases are not allowed"),
    "many levels": ("[" * 3_000, "too many levels"),
    "a megabyte": ("# " + "x" * MANY, f"more than {MANY} bytes"),
    "a path as the name of an import": ("sde: {name: os.system, settings: {command: touch executed}}", "unknown SDE 'os.system'"),
    "a network to import": ("model: {network: pathlib.Path}", "unknown network 'pathlib.Path'"),
    "a solver to import": ("sampling: {solver: builtins.eval}", "unknown solver 'builtins.eval'"),
    "a dunder as a name": ("model: {network: __class__}", "unknown network '__class__'"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configurations(kind: str, sde_gen_command: Command, tmp_path: Path) -> None:
    content, message = CONFIGS[kind]
    (tmp_path / "bad.yaml").write_text(content)
    code, out, err = sde_gen_command("run", "--config", "bad.yaml", "--data", "gaussians8")
    assert (code, out, len(err)) == (2, [], 1)
    assert re.search(message, err[0]), err[0]
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("value", [EXECUTE, "[&a [1], *a]", "[" * 3_000, "2024-99-99"])
def test_values_of_a_flag(value: str, sde_gen_command: Command, tmp_path: Path) -> None:
    code, out, err = sde_gen_command("run", "--set", f"sde.settings.beta_max={value}")
    assert (code, out, len(err)) == (2, [], 1) and len(err[0]) < 400
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_without_end(sde_gen_command: Command) -> None:
    code, _, err = sde_gen_command("run", "--config", "/dev/zero")
    assert code == 2 and f"more than {MANY} bytes" in err[0]


def test_what_dry_run_prints_needs_no_alias() -> None:
    for name in sde_gen.data.DATASETS:
        assert read_yaml(resolve({"data": {"name": name}}).to_yaml())["data"]["name"] == name


DATA: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a pickle named pt": (
        "weights.pt",
        lambda: pickle.dumps(Planted()),
        "weights.pt: holds Record; a tensor, or a dict of tensors by name, is needed",
    ),
    "what torch.save writes": ("data.pt", torch_saved, "constant data, all 4 training items are equal"),
    "what torch.save writes, named npz": ("data.npz", torch_saved, "data.npz: "),
    "what torch.save writes, named npy": ("data.npy", torch_saved, "data.npy: its content is not"),
    "what torch.save writes, named zip": ("data.zip", torch_saved, "data.zip: no images"),
    "a pickle named csv": ("data.csv", lambda: pickle.dumps(Planted()), "data.csv: "),
    "code in an npy header": (
        "code.npy",
        lambda: npy_header(f"{{'descr': __import__('pathlib').Path('{CANARY}').touch(), 'fortran_order': False, 'shape': (4, 2), }}"),
        "code.npy cannot be read",
    ),
    "an npy header that claims petabytes": (
        "huge.npy",
        lambda: npy_header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({1 << 45}, 8), }}", b"\0" * 64),
        "huge.npy",
    ),
    "an npy header of many brackets": ("deep.npy", lambda: npy_header("(" * 100 + ")" * 17), "deep.npy"),
    "an npz of a petabyte": (
        "huge.npz",
        lambda: zipped(x__npy=npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({1 << 40}, 8), }}", b"\0" * 64)),
        "huge.npz",
    ),
    "a tar of devices and pipes": (
        "odd.tar",
        lambda: tar(entry("a.png", tarfile.CHRTYPE), entry("b.png", tarfile.FIFOTYPE)),
        "odd.tar: no images",
    ),
    "a tar of hard links to elsewhere": (
        "links.tar",
        lambda: tar(entry("a.png", tarfile.LNKTYPE, "/etc/passwd"), entry("b.png", tarfile.SYMTYPE, "../../etc/passwd")),
        "links.tar: no images",
    ),
}


@pytest.mark.parametrize("kind", DATA)
def test_data(kind: str, sde_gen_command: Command, tmp_path: Path) -> None:
    name, make, message = DATA[kind]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(name)
    assert "\n" not in str(caught.value)
    code, out, err = sde_gen_command("run", "--data", name)
    assert (code, out, len(err)) == (2, [], 1) and name in err[0]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_zip_bomb_of_arrays_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_gen.data.arrays.MOST_UNPACKED", MANY)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((MANY, 8), np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < MANY // 50
    with pytest.raises(ValueError, match=r"bomb.npz: .*at most 1,048,576"):
        load_dataset(tmp_path / "bomb.npz")


def test_pictures_that_are_links_to_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not a picture")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").symlink_to(tmp_path / "secret")
    (tmp_path / "pictures" / "around").symlink_to(tmp_path / "pictures")
    with pytest.raises(ValueError, match="pictures") as caught:
        load_dataset(tmp_path / "pictures")
    assert "not a picture" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at its second step of 12, as the command line leaves it."""
    path = tmp_path_factory.mktemp("whole") / "run"
    config = resolve(
        {
            "data": {"name": "gaussians8"},
            "model": {"network": "mlp", "options": {"width": 16, "depth": 1}},
            "training": {"steps": 12, "batch": 16, "evaluations": 1},
        }
    )
    data = load_dataset("gaussians8", seed=config.training.seed).train
    made = build_model(data, network="mlp", network_options=config.model.options)
    settings = TrainSettings(steps=2, batch=16, evaluations=1)
    result = fit(made, data[:200], settings, progress=False)
    extra = {"complete": False, "steps": 2, "seconds": 0.1, "identity": config.identity()}
    save(result.raw, path / "checkpoint", ema=result.model.network, extra=extra, state=result.state())
    (path / "config.yaml").write_text(config.to_yaml())
    return path


def signed(version: Path) -> None:
    """Give the version a manifest that fits what its files are now: who writes the files writes the sums."""
    names = [file.name for file in version.iterdir() if file.name != "manifest.json" and file.is_file()]
    sums = {n: {"sha256": hashlib.sha256((version / n).read_bytes()).hexdigest(), "bytes": (version / n).stat().st_size} for n in names}
    (version / "manifest.json").write_text(json.dumps({"files": sums}))


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    def attack(version: Path) -> None:
        (version / name).write_bytes(content.encode() if isinstance(content, str) else content)
        signed(version)

    return attack


def describe(*place: str, value: Any, file: str = "model.json") -> Callable[[Path], None]:
    """Another value at a place in a JSON file."""

    def attack(version: Path) -> None:
        whole = json.loads((version / file).read_text())
        inner = whole
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        (version / file).write_text(json.dumps(whole))
        signed(version)

    return attack


def tensors(offsets: list[int], length: int | None = None, shape: tuple[int, ...] = (4,)) -> bytes:
    head = json.dumps({"network.x": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + b"\0" * 16


def sparse(name: str, size: int) -> Callable[[Path], None]:
    def attack(version: Path) -> None:
        with (version / name).open("wb") as file:
            file.truncate(size)
        signed(version)

    return attack


def manifest(content: str) -> Callable[[Path], None]:
    return lambda version: (version / "manifest.json").write_text(content) and None


def link(name: str, target: str, sign: bool = False) -> Callable[[Path], None]:
    def attack(version: Path) -> None:
        (version / name).unlink()
        (version / name).symlink_to(target)
        if sign:
            signed(version)

    return attack


def pipe(name: str) -> Callable[[Path], None]:
    def attack(version: Path) -> None:
        (version / name).unlink()
        os.mkfifo(version / name)

    return attack


def optimiser_of_another_shape(version: Path) -> None:
    state = load_file(version / "training.safetensors")
    save_file(
        {key: value[..., :1].clone() if key.endswith("exp_avg") else value for key, value in state.items()},
        version / "training.safetensors",
    )
    signed(version)


def without_randomness(version: Path) -> None:
    state = load_file(version / "training.safetensors")
    save_file(state | {"generator": torch.zeros(3, dtype=torch.uint8)}, version / "training.safetensors")
    signed(version)


ELSEWHERE = {"../../../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}
FITTED = {"solver": "ode", "options": {}, "steps": 2, "times": [1, 0.5, 0], "shifts": [], "error": 0, "default_error": 0, "seconds": 0}
CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "a pickle as weights": write("weights.safetensors", pickle.dumps(Planted())),
    "what torch.save writes as weights": write("weights.safetensors", torch_saved()),
    "a header longer than the file": write("weights.safetensors", tensors([0, 16], length=1 << 20)),
    "a header of exabytes": write("weights.safetensors", tensors([0, 16], length=(1 << 63) - 1)),
    "offsets outside the file": write("weights.safetensors", tensors([0, 1 << 40])),
    "offsets before the data": write("weights.safetensors", tensors([-16, 0])),
    "offsets that are not the shape's": write("weights.safetensors", tensors([0, 16], shape=(1 << 30, 1 << 30))),
    "offsets the wrong way round": write("weights.safetensors", tensors([16, 0])),
    "a header that is no JSON": write("weights.safetensors", struct.pack("<Q", 9) + b"not json!"),
    "JSON of many levels": write("model.json", "[" * 200_000),
    "JSON of many levels inside": write("model.json", '{"format": 1, "sde": ' + "[" * 200_000),
    "JSON of gigabytes": sparse("model.json", 1 << 27),
    "JSON of bytes that are no text": write("model.json", b"\xff\xfe{}"),
    "a network to import": describe("network", "name", value="os.system"),
    "an SDE to import": describe("sde", "name", value="builtins.eval"),
    "settings of an SDE that are a list": describe("sde", "settings", value=[1]),
    "an SDE of a billion steps": describe("sde", value={"name": "ddpm", "settings": {"steps": 1 << 40}}),
    "a network of terabytes": describe("network", "options", "width", value=60_000),
    "a network of more layers than there are": describe("network", "options", "depth", value=1 << 40),
    "a network of another shape": describe("network", "shape", value=[1 << 40]),
    "options of a network that are text": describe("network", "options", value="__class__"),
    "a prediction to import": describe("model", "prediction", value="os.system"),
    "settings of a model that are not its own": describe("model", "network", value="os.system"),
    "a normaliser that is a list": describe("normalizer", value=["standard"]),
    "a normaliser of terabytes": describe("normalizer", "shape", value=[1 << 43]),
    "a fitted grid of an adaptive solver": describe("fitted", value=[FITTED]),
    "a fitted grid that is text": describe("fitted", value="os.system"),
    "a fitted grid of a solver to import": describe("fitted", value=[FITTED | {"solver": "os.system"}]),
    "a manifest that names a file elsewhere": manifest(json.dumps({"files": ELSEWHERE})),
    "a manifest of nothing": manifest('{"files": {}}'),
    "a manifest of many levels": manifest('{"files": ' + "[" * 200_000),
    "a manifest of megabytes": manifest('{"files": {}}' + " " * (1 << 21)),
    "a manifest that is a pipe": pipe("manifest.json"),
    "weights that are a pipe": pipe("weights.safetensors"),
    "weights that are a link to elsewhere": link("weights.safetensors", "/etc/passwd"),
    "weights that are a link to elsewhere, signed": link("weights.safetensors", "/etc/passwd", sign=True),
    "weights that are a link without end": link("weights.safetensors", "/dev/zero"),
    "a description that is a link to itself": link("model.json", "model.json"),
}
STATES: dict[str, Callable[[Path], None]] = {
    "a pickle as state": write("training.safetensors", pickle.dumps(Planted())),
    "a state of many levels": write("training.json", "[" * 200_000),
    "a state that is a list": write("training.json", "[1]"),
    "a state without its steps": write("training.json", "{}"),
    "a state before the start": describe("step", value=-5, file="training.json"),
    "a state of parts of nothing": describe("part", value=0, file="training.json"),
    "a state of endless seconds": describe("seconds", value=float("inf"), file="training.json"),
    "a history that is a number": describe("history", value=5, file="training.json"),
    "an optimiser of another shape": optimiser_of_another_shape,
    "a random state of another length": without_randomness,
    "an extra that says nothing": describe("extra", "steps", value="many"),
}


def attacked(run_directory: Path, where: Path, attack: Callable[[Path], None]) -> Path:
    copy = where / "run"
    shutil.copytree(run_directory, copy)
    attack(copy / "checkpoint" / "00000001")
    return copy


def resumed(command: Command, run: str = "run") -> tuple[int, list[str], list[str]]:
    return command(
        "run", "--config", f"{run}/config.yaml", "--out", run, "--no-progress", "--solver", "em", "--steps", "2", "--samples", "16"
    )


def test_the_run_that_is_attacked_is_whole(run_directory: Path, tmp_path: Path) -> None:
    copy = attacked(run_directory, tmp_path, signed)
    assert read_state(copy / "checkpoint") is not None
    sde_gen.load(copy / "checkpoint")


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(kind: str, run_directory: Path, sde_gen_command: Command, tmp_path: Path) -> None:
    copy = attacked(run_directory, tmp_path, CHECKPOINTS[kind])
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="checkpoint") as caught:
        sde_gen.load(copy / "checkpoint")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000 and "root:" not in str(caught.value)
    code, _, err = resumed(sde_gen_command)
    assert (code, len(err)) == (2, 1) and "--retrain" in err[0], err
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", STATES)
def test_states_of_a_training(kind: str, run_directory: Path, sde_gen_command: Command, tmp_path: Path) -> None:
    attacked(run_directory, tmp_path, STATES[kind])
    code, out, err = resumed(sde_gen_command)
    assert (code, len(err)) == (2, 1) and "checkpoint" in err[0], (out, err)
    assert not (tmp_path / CANARY).exists() and not (tmp_path / "run" / "metrics.json").exists()


def test_a_configuration_of_a_run_can_be_hostile_too(run_directory: Path, sde_gen_command: Command, tmp_path: Path) -> None:
    copy = attacked(run_directory, tmp_path, signed)
    (copy / "config.yaml").write_text(f"sde: {EXECUTE}")
    for name in ("likelihood", "compare"):
        code, out, err = sde_gen_command(name, "--run", "run")
        assert (code, out, len(err)) == (2, [], 1) and "config.yaml" in err[0]
    with pytest.raises(ConfigError):
        read_config(copy / "config.yaml")
    assert not (tmp_path / CANARY).exists()


def test_the_canary_dies_where_a_pickle_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Planted()))
    assert (tmp_path / CANARY).exists()
