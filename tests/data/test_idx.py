import gzip
import struct

import numpy as np
import pytest

from sde_gen.data.idx import read_idx

IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


def content(array=IMAGES, magic=None, shape=None):
    shape = array.shape if shape is None else shape
    return struct.pack(f">I{len(shape)}I", 0x800 + len(shape) if magic is None else magic, *shape) + array.tobytes()


@pytest.fixture(params=["plain", "gz"])
def write(request, tmp_path):
    def write_file(data):
        path = tmp_path / ("images" + (".gz" if request.param == "gz" else ""))
        path.write_bytes(gzip.compress(data) if request.param == "gz" else data)
        return path

    return write_file


def test_reads_images_and_labels(write):
    np.testing.assert_array_equal(read_idx(write(content()), (4, 5)), IMAGES)
    np.testing.assert_array_equal(read_idx(write(content(IMAGES[0, 0])), ()), IMAGES[0, 0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "magic number"),
        (content(magic=0x801), "0x00000803"),
        (content(magic=0x0D03), "magic number 0x00000d03"),
        (content()[:9], "inside its header"),
        (content()[:-1], "59 bytes of values"),
        (content() + b"x", "more than 60 bytes"),
        (content(shape=(3, 5, 4)), r"dimensions \(3, 5, 4\); \(N, 4, 5\)"),
        (content(shape=(0, 4, 5)), "N >= 1"),
        (content(shape=(2**32 - 1, 4, 5)), "claims"),
        (content(shape=(50_000_000, 4, 5)), "60 bytes of values"),
    ],
)
def test_broken_files_are_refused_in_one_line(write, data, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(write(data), (4, 5))
    assert "\n" not in str(caught.value) and "images" in str(caught.value)


def test_a_broken_gzip_stream_is_refused(tmp_path):
    whole = gzip.compress(np.random.default_rng(0).integers(256, size=5000, dtype=np.uint8).tobytes())
    flipped = whole[:20] + b"\xff" * 20 + whole[40:]
    for name, data in {"cut": gzip.compress(content())[:-12], "plain": content(), "flipped": flipped}.items():
        path = tmp_path / f"{name}.gz"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}.gz: (cannot be read|magic)"):
            read_idx(path, (4, 5))


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            read_idx(path, (4, 5))
