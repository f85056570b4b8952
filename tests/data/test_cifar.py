import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import load_dataset

RNG = np.random.default_rng(0)
FILES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
RECORDS = {
    name: np.concatenate([RNG.integers(10, size=(3, 1)), RNG.integers(256, size=(3, 3072))], axis=1).astype(np.uint8) for name in FILES
}


@pytest.mark.parametrize("how", ["files", "folder", "archive"])
def test_the_binary_version_is_read(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin" if how == "folder" else tmp_path
    folder.mkdir(exist_ok=True)
    if how == "archive":
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
            for name in reversed(FILES):
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                info.size = RECORDS[name].size
                archive.addfile(info, io.BytesIO(RECORDS[name].tobytes()))
    else:
        for name in FILES:
            (folder / name).write_bytes(RECORDS[name].tobytes())
    dataset = load_dataset("cifar10", tmp_path)
    train = np.concatenate([RECORDS[name] for name in FILES[:5]])
    assert dataset.train.shape == (15, 3, 32, 32) and dataset.test is not None and dataset.test.shape == (3, 3, 32, 32)
    assert dataset.train_labels is not None and dataset.train_labels.tolist() == train[:, 0].tolist()
    assert dataset.train[7, 1, 2, 3] == train[7, 1 + 1024 + 2 * 32 + 3] and dataset.levels == 256
    assert torch.equal(dataset.test.flatten(1), torch.from_numpy(RECORDS["test_batch.bin"][:, 1:]).float())


@pytest.mark.parametrize("name", ["data_batch_1", "cifar-10-batches-py", "cifar-10-python.tar.gz"])
def test_the_pickled_version_is_named_and_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir() if name.endswith("py") else (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(
        ValueError, match=rf"Python version \({name}\), which is never unpickled; expected cifar-10-binary.tar.gz"
    ) as caught:
        load_dataset("cifar10", tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs root.*cifar-10-binary.tar.gz.*--download"):
        load_dataset("cifar10")
    with pytest.raises(ValueError, match="is not a directory"):
        load_dataset("cifar10", tmp_path / "absent")
    for name in FILES[:-1]:
        (tmp_path / name).write_bytes(RECORDS[name].tobytes())
    with pytest.raises(ValueError, match=r"lacks test_batch.bin; expected"):
        load_dataset("cifar10", tmp_path)
    for content, message in [(b"", "0 bytes"), (bytes(3000), "whole records of 3073"), (b"\x0a" + bytes(3072), "label 10; 0..9")]:
        (tmp_path / "test_batch.bin").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_dataset("cifar10", tmp_path)
