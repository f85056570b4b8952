"""Files made to do harm: each is one line that names it, nothing in them is executed, and memory stays small."""

import io
import json
import pickle
import pickletools
import resource
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from sde_gen import CheckpointError
from sde_gen.tensor_files import read

CANARY = "executed"
MANY = 10**11


class Call:
    """Calls `function` when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.found = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.found


def system() -> Call:
    import os

    return Call(os.system, f"touch {CANARY}")


def saved(value: Any, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.zeros(3)}


def repacked(content: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The zip file with each member changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def with_pickle(content: bytes) -> bytes:
    """A file of torch.save whose pickle is this one."""
    return repacked(saved(weights()), lambda name, member: content if name.endswith("data.pkl") else member)


class Tensors(pickle.Pickler):
    """Writes what torch.save would of one tensor, with any storage, offset, size and stride."""

    def persistent_id(self, value: Any) -> Any:
        return value.found[1] if isinstance(value, Call) and value.found[0] == "storage" else None


def tensor_of(
    offset: Any = 0, size: Any = (3, 4), stride: Any = (4, 1), count: Any = 12, key: str = "0", kind: Any = torch.FloatStorage
) -> bytes:
    buffer = io.BytesIO()
    storage = Call("storage", "storage", kind, key, "cpu", count)
    rebuild = torch._utils._rebuild_tensor_v2
    Tensors(buffer, 2).dump({"a": Call(rebuild, storage, offset, size, stride, False, OrderedDict())})
    return with_pickle(buffer.getvalue())


def nested(levels: int, opener: bytes = b"(", closer: bytes = b"t") -> bytes:
    return b"\x80\x02" + opener * levels + closer * levels + b"."


def safetensors(header: Any, content: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def doubled(levels: int) -> Any:
    """A tuple of the same tuple twice, and so on: short in a file, beyond memory in print."""
    value: Any = ("x",)
    for _ in range(levels):
        value = (value, value)
    return value


def sharing(levels: int) -> dict[str, Any]:
    """The state of a network whose modules are each the same one ten times over."""
    state: dict[str, Any] = {"_modules": {}, "_parameters": {}}
    for _ in range(levels):
        child = Call(print, state=state)
        state = {"_modules": {str(k): child for k in range(10)}, "_parameters": {}}
    return state


def edm(source: str = f"open('{CANARY}', 'w')", **state: Any) -> bytes:
    """What EDM pickles: a function that would execute the source code of a class, and then build it from its state."""
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": "EDMPrecond", "state": state}
    return renamed(pickle.dumps({"ema": Call(exec, meta)}, protocol=4), "torch_utils.persistence", "_reconstruct_persistent_obj")


def renamed(content: bytes, module: str, name: str) -> bytes:
    """A pickle of protocol 4 with builtins.exec under another name."""

    def short(text: str) -> bytes:
        return b"\x8c" + bytes([len(text)]) + text.encode()

    assert short("builtins") in content and short("exec") in content
    body = content.replace(short("builtins"), short(module)).replace(short("exec"), short(name))
    return b"\x80\x04" + body[11:]  # without the frame, whose length is another one


def old_of(storage_count: int, told: int) -> bytes:
    """The old format with a storage that its tensor says has `storage_count` numbers, and the file `told`."""
    content = saved(torch.zeros(4), old=True)
    at = content.rindex(struct.pack("<q", 4))
    return (
        content[:at].replace(b"K\x04N", b"\x8a\x06" + struct.pack("<q", storage_count)[:6] + b"N")
        + struct.pack("<q", told)
        + content[at + 8 :]
    )


INNER = saved(torch.zeros(4).storage(), old=True)
OF_BYTES = torch.storage._load_from_bytes
VIEW = torch._utils._rebuild_tensor_v2
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    # what would be executed
    "os.system by reduce": (lambda: pickle.dumps(system()), "knows no such checkpoint"),
    "os.system in torch.save": (lambda: saved({"x": torch.ones(2), "y": system()}), "knows no such checkpoint"),
    "os.system in the old torch.save": (lambda: saved({"x": torch.ones(2), "y": system()}, old=True), "knows no such checkpoint"),
    "eval in a state": (
        lambda: pickle.dumps(Call(OrderedDict, state={"x": Call(eval, f"open('{CANARY}', 'w')")})),
        "knows no such checkpoint",
    ),
    "exec of embedded source": (edm, "is not what edm writes"),
    "modules that share modules": (lambda: edm(**sharing(6)), "more than 65536 modules"),
    "embedded source with a state": (lambda: edm(_modules={}, _parameters={"w": torch.ones(3)}), "is not what edm writes"),
    "a key of the state that is called": (
        lambda: with_pickle(pickle.dumps({"a": Call(exec, f"open('{CANARY}', 'w')")}, 2)),
        "knows no such checkpoint",
    ),
    "Lightning's own classes": (
        lambda: saved({"state_dict": weights(), "callbacks": Call(exec, f"open('{CANARY}', 'w')"), "pytorch-lightning_version": "2.0"}),
        "knows no such checkpoint",
    ),
    "a getattr of what is loaded": (lambda: pickle.dumps(Call(getattr, system(), "x")), "knows no such checkpoint"),
    "an instance of protocol 0": (lambda: b"(cos\nsystem\nS'touch executed'\no.", "neither safetensors"),
    "an INST opcode": (lambda: b"\x80\x02(S'touch executed'\nios\nsystem\n.", "opcode INST"),
    "an OBJ opcode": (lambda: b"\x80\x02(cos\nsystem\nS'touch executed'\no.", "opcode OBJ"),
    "an extension code": (lambda: b"\x80\x02\x82\x01.", "opcode EXT1|extension"),
    # tensors that would reach beyond their numbers
    "an offset beyond the storage": (lambda: tensor_of(offset=1), "in a storage of 12"),
    "a negative offset": (lambda: tensor_of(offset=-1), "offset"),
    "a size beyond the storage": (lambda: tensor_of(size=(4, 4)), "in a storage of 12"),
    "a stride beyond the storage": (lambda: tensor_of(stride=(400, 1)), "in a storage of 12"),
    "a negative stride": (lambda: tensor_of(stride=(-4, 1)), "stride"),
    "a stride of nothing": (lambda: tensor_of(size=(MANY,), stride=(0,)), "in a storage of 12"),
    "sizes whose product overflows": (lambda: tensor_of(size=(1 << 40, 1 << 40), stride=(0, 0)), "in a storage of 12"),
    "more sizes than strides": (lambda: tensor_of(size=(3, 4, 1)), "dimensions"),
    "a size that is no number": (lambda: tensor_of(size=("3", 4)), "size"),
    "a storage of terabytes": (lambda: tensor_of(count=MANY), "more than the"),
    "a storage of negative size": (lambda: tensor_of(count=-1), "more than the"),
    "a storage that is not there": (lambda: tensor_of(key="../../data.pkl"), "no item named|no checkpoint"),
    "a storage of another size": (lambda: tensor_of(count=11, size=(2,), stride=(1,)), "not what its tensors say"),
    "a storage of no known kind": (lambda: tensor_of(kind=print), "unknown kind"),
    "the old format with a storage of terabytes": (lambda: old_of(MANY, MANY), "more than the"),
    "the old format with two sizes": (lambda: old_of(4, 5), "not what its tensors say"),
    "a size of parts that share parts": (lambda: tensor_of(size=doubled(60)), "size"),
    "an offset of parts that share parts": (lambda: tensor_of(offset=doubled(60)), "offset"),
    # storages inside of storages
    "a storage that is a pickle": (
        lambda: pickle.dumps({"w": Call(VIEW, Call(OF_BYTES, pickle.dumps(system())), 0, (1,), (1,))}),
        "something else",
    ),
    "a storage in a storage": (lambda: pickle.dumps({"w": Call(OF_BYTES, pickle.dumps(Call(OF_BYTES, INNER)))}), "inside of a storage"),
    "a storage many times over": (
        lambda: b"\x80\x04(\x8c\x01x" + pickle.dumps(Call(OF_BYTES, INNER), 4)[2:-1].replace(b"\x95", b"\x95") + b"d.",
        "knows no such checkpoint",
    ),
    "one storage of bytes in a thousand tensors": (lambda: multiplied(1000), "hold more than"),
    # what takes memory or time
    "a thousand tuples inside of one another": (lambda: nested(1000), "nested more than"),
    "a hundred thousand lists inside of one another": (
        lambda: b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        "nested more than|opcodes",
    ),
    "many marks": (lambda: nested(10**5), "nested more than|opcodes"),
    "a place in the memo beyond memory": (lambda: b"\x80\x02Nr\xff\xff\xff\x7f0N.", "knows no such checkpoint"),
    "bytes that are not there": (lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.", "claims a value"),
    "a bytearray of terabytes": (lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.", "claims a value"),
    "a call of bytearray with terabytes": (lambda: saved({"x": torch.ones(2), "y": Call(bytearray, MANY)}), "knows no such checkpoint"),
    "an integer of a million digits": (lambda: b"\x80\x02L" + b"9" * 10**6 + b"L\n.", "no checkpoint"),
    "opcodes without end": (lambda: b"\x80\x02" + b"N" * 1_100_000 + b".", "opcodes"),
    "a zip bomb": (lambda: repacked(saved(weights()), lambda n, m: m + bytes(10**7), zipfile.ZIP_DEFLATED), "compressed"),
    "a zip file whose members share bytes": (lambda: overlapping(), "claim more bytes|no checkpoint|verlap"),
    "a key that is a list": (lambda: b"\x80\x02}]Ns.", "key that is a list"),
    "a stack that is empty": (lambda: b"\x80\x020.", "more from its stack"),
    "a reference to nothing": (lambda: b"\x80\x02h\x07.", "not kept"),
    "no STOP": (lambda: b"\x80\x02}", "no checkpoint"),
    # cut short
    "half a file of torch.save": (lambda: saved(weights())[:600], "no checkpoint"),
    "half a file of the old torch.save": (lambda: saved(weights(), old=True)[:-10], "bytes where"),
    "half of a pickle": (lambda: edm()[:90], "no checkpoint"),
    "nothing": (lambda: b"", "neither safetensors"),
    "a text": (lambda: b"#!/bin/sh\ntouch executed\n", "neither safetensors"),
    "a zip file of something else": (lambda: zipped({"a/readme.txt": b"hello"}), "not one of torch.save"),
    "a big-endian file": (lambda: repacked(saved(weights()), lambda n, m: b"big" if n.endswith("byteorder") else m), "big-endian"),
    # safetensors
    "a header of petabytes": (lambda: safetensors(b"{}", length=1 << 50), "claims"),
    "a header that is no JSON": (lambda: safetensors(b"{'a': __import__('os')}"), "no checkpoint"),
    "a header of many brackets": (lambda: safetensors(b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"), "no checkpoint"),
    "numbers beyond the end": (
        lambda: safetensors({"a": ENTRY | {"data_offsets": [0, 1 << 50]}}, bytes(8)),
        "beyond its end|no checkpoint",
    ),
    "a shape beyond its numbers": (lambda: safetensors({"a": ENTRY | {"shape": [1 << 40]}}, bytes(8)), "no checkpoint"),
    "negative offsets": (lambda: safetensors({"a": ENTRY | {"data_offsets": [-8, 0]}}, bytes(8)), "no checkpoint"),
    "tensors that share numbers": (lambda: safetensors({"a": ENTRY, "b": ENTRY}, bytes(8)), "no checkpoint"),
    "half of safetensors": (lambda: save(weights())[:-8], "no checkpoint"),
    "an entry that is a list": (lambda: safetensors({"a": [1, 2]}), "no checkpoint"),
}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def multiplied(times: int) -> bytes:
    """Bytes kept once, and made a storage of so many times."""
    name = b"ctorch.storage\n_load_from_bytes\n"
    content = b"B" + struct.pack("<I", len(INNER)) + INNER
    return b"\x80\x02]" + content + b"q\x000(" + (name + b"h\x00\x85R") * times + b"e."


def overlapping() -> bytes:
    """A zip file whose directory names one member a hundred times."""
    content = bytearray(zipped({"a/data.pkl": bytes(10**6)}))
    at = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entry, tail = bytes(content[at:end]), bytearray(content[end:])
    struct.pack_into("<HHI", tail, 8, 100, 100, 100 * len(entry))
    return bytes(content[:at]) + entry * 100 + bytes(tail)


def test_there_are_enough_files() -> None:
    assert len(FILES) >= 40


@pytest.mark.parametrize("kind", FILES)
def test_nothing_is_executed_and_it_is_said_in_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sde_gen.external import load_external

    make, message = FILES[kind]
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message) as caught:
        load_external(file)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 600
    assert str(file) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_the_hostile_files_would_execute_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the corpus would prove nothing."""
    monkeypatch.chdir(tmp_path)
    for make in (FILES["os.system by reduce"][0], FILES["eval in a state"][0]):
        pickle.loads(make())
        assert (tmp_path / CANARY).exists()
        (tmp_path / CANARY).unlink()


def adm_claiming(blocks: int) -> dict[str, torch.Tensor]:
    """A state of guided-diffusion whose names claim so many blocks in a level, of a width of 4."""
    named = {f"input_blocks.{blocks}.0.x": torch.zeros(1), f"output_blocks.{blocks}.0.x": torch.zeros(1)}
    named |= {"input_blocks.0.0.weight": torch.zeros(4, 3, 3, 3), "time_embed.0.weight": torch.zeros(16, 4)}
    named |= {"input_blocks.1.0.in_layers.2.weight": torch.zeros(4, 4, 3, 3), "middle_block.0.emb_layers.1.weight": torch.zeros(8, 16)}
    return named | {"out.2.weight": torch.zeros(3, 4, 3, 3)}


def test_names_and_empty_tensors_that_claim_much_make_nothing(tmp_path: Path) -> None:
    """What a network is made of is in the file before any of it is made."""
    from sde_gen.external import load_external

    facts = {"size": 8, "schedule": "linear", "steps": 1000, "prediction": "noise", "rescale_timesteps": False}
    torch.save(adm_claiming(10**9), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="1000000000 blocks in a level, but 7 tensors"):
        load_external(tmp_path / "a.pt", "adm", facts | {"heads": 1, "attention_order": "new"})
    wide = 50_000
    named = {"init_conv.weight": torch.zeros(wide, 3, 0, 7), "time_mlp.1.weight": torch.zeros(0, wide)}
    named |= {"final_conv.weight": torch.zeros(3, 0, 1, 1), "final_res_block.block1.proj.weight": torch.zeros(0)}
    named |= {
        "downs.0.3.weight": torch.zeros(wide, 0),
        "mid_attn.to_qkv.weight": torch.zeros(0),
        "mid_attn.mem_kv": torch.zeros(2, 1, 4, 8),
    }
    named |= {"downs.0.2.mem_kv": torch.zeros(2, 1, 8, 4)}
    torch.save(named, tmp_path / "l.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="the file lacks"):
        given = {"size": 8, "auto_normalize": True, "objective": "pred_noise", "schedule": "linear", "steps": 1000}
        load_external(tmp_path / "l.pt", "lucid", given)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_an_old_pytorch_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").write_bytes(saved(weights()))
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CheckpointError, match=r"PyTorch 2\.9\.1.*CVE-2026-24747.*2\.10"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("old", [False, True])
def test_what_is_sound_is_read(old: bool, tmp_path: Path) -> None:
    given = {"model": OrderedDict(weights()), "half": torch.ones(2, dtype=torch.bfloat16), "step": 7, "view": torch.arange(10.0)[2:9:3]}
    (tmp_path / "a.pt").write_bytes(saved(given, old))
    found = read(tmp_path / "a.pt")
    assert found.kind == ("inert" if old else "weights_only") and found.tree["step"] == 7
    assert torch.equal(found.tree["view"], given["view"]) and torch.equal(found.tree["half"], given["half"])
    assert all(torch.equal(found.tree["model"][key], value) for key, value in weights().items())


def test_a_pickled_network_is_read_without_its_classes(tmp_path: Path) -> None:
    from sde_gen.tensor_files import state_of

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Sequential(torch.nn.Linear(4, 2, bias=False)))
    for content in (pickle.dumps({"ema": network}, 4), saved({"ema": network}), saved({"ema": network}, old=True)):
        (tmp_path / "a.pkl").write_bytes(content)
        found = state_of(read(tmp_path / "a.pkl").tree["ema"])
        assert found.keys() == network.state_dict().keys()
        assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


def test_every_opcode_is_known_or_refused(tmp_path: Path) -> None:
    """Each opcode alone, with an argument of zeros: no error but the one line."""
    for opcode in pickletools.opcodes:
        (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + opcode.code.encode("latin-1") + bytes(16) + b".")
        try:
            read(tmp_path / "a.pkl")
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_random_damage_is_one_line(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for content in (saved(weights()), saved(weights(), old=True), edm(_modules={}, _parameters={"w": torch.ones(3)}), save(weights())):
        for _ in range(60):
            damaged = bytearray(content)
            for place in torch.randint(len(content), (3,), generator=generator).tolist():
                damaged[place] = int(torch.randint(256, (1,), generator=generator))
            (tmp_path / "a.pt").write_bytes(damaged)
            try:
                read(tmp_path / "a.pt")
            except CheckpointError as error:
                assert "\n" not in str(error)
