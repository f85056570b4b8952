"""Files of each format: what is read is what its own library wrote, and what is written is read by that library as what went in."""

import ast
import gzip
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from toys import Command

import sde_gen
from sde_gen.data import Dataset, item_shape, load_dataset
from sde_gen.data.degraded import read_degraded
from sde_gen.data.formats import FORMATS, format_of
from sde_gen.data.formats.base import PerProcess
from sde_gen.data.reading import Reading
from sde_gen.data.write import DataDescription, write_samples

h5py, xarray, zarr = (pytest.importorskip(name) for name in ("h5py", "xarray", "zarr"))
nibabel, soundfile, tifffile = (pytest.importorskip(name) for name in ("nibabel", "soundfile", "tifffile"))
pytest.importorskip("h5netcdf")

RNG = np.random.default_rng(0)
COUNT = 24


def everything(dataset: Dataset) -> np.ndarray:
    """All items in an order that does not depend on that of the file."""
    x = dataset.train if dataset.test is None else torch.cat((dataset.train, dataset.test))
    return in_order(x.double().numpy())


def in_order(x: np.ndarray) -> np.ndarray:
    return x[np.lexsort(x.reshape(len(x), -1).T[::-1])]


def write(path: Path, about: DataDescription, x: np.ndarray, classes: np.ndarray | None = None) -> Path:
    """In two parts, by what a run keeps of its data."""
    about = DataDescription.from_config(about.to_config())
    form = about.form(str(path))
    about.check(form)
    values = about.finish(torch.from_numpy(x), form)[0]
    half = len(x) // 2
    parts = [(values[:half], None if classes is None else classes[:half]), (values[half:], None if classes is None else classes[half:])]
    write_samples(path, form, about, len(x), lambda: iter(parts), classes is not None)
    return path


# ---------------------------------------------------------------- arrays by name: NetCDF, zarr, HDF5


def field() -> Any:
    """A field as climate models leave it: packed, with a fill value, coordinates and attributes; another of another scale."""
    t2m = (280 + 12 * RNG.normal(size=(COUNT, 5, 7))).round(2)
    q = (1e-6 * RNG.exponential(size=(COUNT, 5, 7))).astype(np.float32)
    coords = {
        "time": ("time", np.arange(COUNT), {"units": "days since 1990-01-01"}),
        "lat": ("lat", np.linspace(60, 50, 5), {"units": "degrees_north", "axis": "Y"}),
        "lon": ("lon", np.linspace(0, 6, 7).astype(np.float32), {"units": "degrees_east", "axis": "X"}),
        "area": (("lat", "lon"), RNG.random((5, 7))),
        "height": ((), 2.0, {"units": "m"}),
        "place": ("lat", np.array(["a", "bb", "ccc", "d", "e"], dtype=object)),
    }
    found = xarray.Dataset(
        {"t2m": (("time", "lat", "lon"), t2m, {"units": "K", "long_name": "air temperature"}), "q": (("time", "lat", "lon"), q)},
        coords,
        {"title": "made here", "version": 3},
    )
    found["t2m"].encoding = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": np.int16(-32767)}
    found["q"].encoding = {"_FillValue": np.float32(1e20)}
    return found


def save(found: Any, path: Path) -> Path:
    found.to_zarr(path, consolidated=False) if path.suffix == ".zarr" else found.to_netcdf(path, engine="h5netcdf")
    return path


def opened(path: Path) -> Any:
    return xarray.open_zarr(path, consolidated=False) if path.suffix == ".zarr" else xarray.open_dataset(path, engine="h5netcdf")


@pytest.mark.parametrize("ending", [".nc", ".zarr"])
def test_a_field_comes_back_packed_under_its_own_coordinates_and_attributes(ending: str, tmp_path: Path) -> None:
    before = field()
    path = save(before, tmp_path / f"f{ending}")
    data = load_dataset(path, variable="t2m")
    assert data.shape == (1, 5, 7) == item_shape(str(path), Reading(variable=("t2m",))) and data.levels is None
    np.testing.assert_allclose(everything(data)[:, 0], in_order(before["t2m"].values), atol=1e-4)
    assert "variables not used: q" in "\n".join(data.notes) and "(time 24, lat 5, lon 7)" in "\n".join(data.notes)
    x = data.train[:9].double().numpy()
    x[3, 0, 2, 2] = np.nan
    out = write(tmp_path / f"o{ending}", DataDescription.of(data), x)
    after = opened(out)
    assert after["t2m"].dims == ("sample", "lat", "lon") and set(after.data_vars) == {"t2m"} and after.attrs == before.attrs
    np.testing.assert_allclose(after["t2m"].values, x[:, 0], atol=1e-9, err_msg="the data's own packing holds them exactly")
    assert np.isnan(after["t2m"].values).sum() == 1 and after["t2m"].attrs == before["t2m"].attrs
    for key in ("dtype", "scale_factor", "add_offset", "_FillValue"):
        assert after["t2m"].encoding[key] == before["t2m"].encoding[key], key
    for name in ("lat", "lon", "area", "height", "place"):
        xarray.testing.assert_identical(after[name].variable, opened(path)[name].variable)
        assert after[name].dtype == opened(path)[name].dtype
    assert "time" not in after.coords, "samples have none"
    again = load_dataset(out, missing="nan")
    assert again.shape == data.shape and len(again.train) + len(again.test if again.test is not None else []) == 8


@pytest.mark.parametrize("ending", [".nc", ".zarr"])
def test_variables_of_one_grid_are_channels_and_come_back_apart(ending: str, tmp_path: Path) -> None:
    before = field()
    path = save(before, tmp_path / f"f{ending}")
    data = load_dataset(path, variable=["t2m", "q"])
    assert data.shape == (2, 5, 7)
    np.testing.assert_allclose(everything(data), in_order(np.stack([before["t2m"], before["q"]], axis=1)), rtol=1e-6, atol=1e-13)
    x = data.train[:4].double().numpy()
    after = opened(write(tmp_path / f"o{ending}", DataDescription.of(data), x))
    np.testing.assert_allclose(np.stack([after["t2m"], after["q"]], axis=1), x, rtol=1e-6, atol=1e-9)
    assert after["q"].dtype == np.float32 and after["t2m"].encoding["dtype"] == np.int16
    with pytest.raises(ValueError, match=r"holds .*\(24, 5, 7\), .*\(24, 5, 7\).*say which .*--variable NAME"):
        load_dataset(path)
    with pytest.raises(ValueError, match=r"no variable 'p'; it holds"):
        load_dataset(path, variable="p")


def test_files_of_version_3_and_other_orders_of_axes_are_read(tmp_path: Path) -> None:
    values = RNG.normal(size=(6, 5, COUNT)).astype(np.float32)
    found = xarray.Dataset({"u": (("y", "x", "time"), values)})
    found.to_netcdf(tmp_path / "old.nc", engine="scipy")
    data = load_dataset(tmp_path / "old.nc")
    np.testing.assert_array_equal(everything(data)[:, 0], in_order(np.moveaxis(values, -1, 0)))
    after = opened(write(tmp_path / "o.nc", DataDescription.of(data), data.train.double().numpy()))
    assert after["u"].dims == ("y", "x", "sample") and after["u"].dtype == np.float32
    np.testing.assert_array_equal(np.moveaxis(after["u"].values, -1, 0), data.train[:, 0])
    for dims, axes, shape in (
        (("station", "value"), None, (5,)),
        (("a", "b", "c"), "NHW", (1, 5, COUNT)),
        (("time", "level", "lat"), None, (1, 5, COUNT)),
        (("time", "band", "freq"), None, (5, COUNT)),
    ):
        variable = xarray.Dataset({"u": (dims, values[:, :, 0] if len(dims) == 2 else values)})
        variable.to_netcdf(tmp_path / f"{len(dims)}{dims[-1]}.nc", engine="h5netcdf")
        assert load_dataset(tmp_path / f"{len(dims)}{dims[-1]}.nc", axes=axes).shape == shape, dims


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float16", "float32", "float64"])
def test_hdf5_keeps_names_groups_scales_types_and_attributes(dtype: str, tmp_path: Path) -> None:
    values = (100 + 20 * RNG.normal(size=(COUNT, 4, 6, 3))).round(0 if dtype[0] != "f" else 2).astype(dtype)
    labels = np.array(["cat", "dog"])[np.arange(COUNT) % 2]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["made"] = "here"
        file["scan/images"] = values
        file["scan/images"].attrs["exposure"] = np.float32(0.25)
        file["labels"] = labels.astype(object)
        file["dose"] = np.linspace(0, 1, COUNT)
        file["wave"] = np.array([400.0, 500.0, 700.0])
        file["wave"].make_scale()
        file["scan/images"].dims[3].attach_scale(file["wave"])
        file["elsewhere"] = h5py.ExternalLink("b.h5", "x")
    data = load_dataset(tmp_path / "a.h5", axes="NHWC", conditions=["dose"], variable="scan/images")
    assert data.shape == (3, 4, 6) and data.classes == 2 and data.label_names == ("cat", "dog") and set(data.cond) == {"dose"}
    assert data.levels == {"uint8": 256, "uint16": 65536}.get(dtype)
    np.testing.assert_allclose(everything(data), in_order(np.moveaxis(values.astype(np.float64), -1, 1)), rtol=1e-7)
    x = data.train.double().numpy()
    about = DataDescription.of(data)
    with h5py.File(write(tmp_path / "o.h5", about, x, np.zeros(len(x), int)), "r") as file:
        written = file["scan/images"]
        assert written.dtype == dtype and written.shape == (len(x), 4, 6, 3) and written.attrs["exposure"] == np.float32(0.25)
        np.testing.assert_array_equal(np.moveaxis(written[:].astype(np.float64), -1, 1), x)
        assert file.attrs["made"] == "here" and set(file["label"].asstr()[:]) == {"cat"}
    assert ("rounded" in about.touched_line([5, 0], 2, "hdf5")) == (dtype[0] != "f")


def test_plain_arrays_of_hdf5_and_zarr_need_no_names(tmp_path: Path) -> None:
    values = RNG.normal(size=(COUNT, 11))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"], file["x_test"] = values, np.arange(COUNT) % 3, values[:5] + 1
    data = load_dataset(tmp_path / "a.h5")
    assert data.shape == (11,) and data.classes == 3 and data.test is not None and len(data.test) == 5
    np.testing.assert_allclose(in_order(data.train.double().numpy()), in_order(values), rtol=1e-6)
    zarr.save(tmp_path / "one.zarr", values)
    zarr.save_group(tmp_path / "many.zarr", x=values.astype(np.float32), y=np.arange(COUNT) % 3)
    for name in ("one", "many"):
        data = load_dataset(tmp_path / f"{name}.zarr")
        np.testing.assert_allclose(everything(data), in_order(values), rtol=1e-6)
        after = opened(write(tmp_path / f"{name}-out.zarr", DataDescription.of(data), data.train.double().numpy()))
        assert after["x"].dtype == (np.float64 if name == "one" else np.float32) and after["x"].shape == data.train.shape
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["u"], file["v"] = values, values
    with pytest.raises(ValueError, match=r"two.h5: holds u \(24, 11\), v \(24, 11\); say which"):
        load_dataset(tmp_path / "two.h5")


@pytest.mark.parametrize("ending", [".nc", ".zarr", ".h5"])
def test_larger_than_memory_is_read_batch_by_batch(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sde_gen.data import formats

    values = RNG.normal(size=(300, 2, 40))
    path = tmp_path / f"a{ending}"
    if ending == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("u", data=values, chunks=(7, 2, 40), compression="gzip")
    else:
        save(xarray.Dataset({"u": (("time", "channel", "x"), values)}), path)
    form = format_of(path.name)
    assert form is not None
    data, whole = (formats.load(path, form, in_memory=most, axes="NCL") for most in (80 * 4 * 30, 1 << 30))
    assert data.source is not None and whole.source is None and len(data.train) == 30 and len(data.source) == 270
    for rows in (torch.tensor([200, 3, 3, 17, 4]), torch.tensor([200, 3, 17, 4])):  # with a repeat, and in another order than the file's
        assert torch.equal(data.source[rows], whole.train[rows])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "uint8", "int64"])
@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors"])
def test_tensors_come_back(dtype: str, ending: str, tmp_path: Path) -> None:
    kind = getattr(torch, dtype)
    x = (100 * torch.rand(COUNT, 5, 6, 3, generator=torch.Generator().manual_seed(0))).to(kind)
    tree = {"images": x, "labels": torch.arange(COUNT) % 2, "dose": torch.linspace(0, 1, COUNT)}
    safetensors.torch.save_file(tree, tmp_path / f"a{ending}") if ending == ".safetensors" else torch.save(tree, tmp_path / f"a{ending}")
    data = load_dataset(tmp_path / f"a{ending}", axes="NHWC", conditions=["dose"])
    assert data.shape == (3, 5, 6) and data.classes == 2 and set(data.cond) == {"dose"} and data.levels == {"uint8": 256}.get(dtype)
    np.testing.assert_allclose(everything(data), in_order(x.permute(0, 3, 1, 2).double().numpy()), rtol=1e-7)
    out = write(tmp_path / f"o{ending}", DataDescription.of(data), data.train.double().numpy(), np.arange(len(data.train)) % 2)
    read = safetensors.torch.load_file(out) if ending == ".safetensors" else torch.load(out, weights_only=True)
    assert read["images"].dtype == kind and read["images"].shape == (len(data.train), 5, 6, 3) and read["label"].tolist()[:2] == [0, 1]
    assert torch.equal(read["images"], data.train.permute(0, 2, 3, 1).to(kind))
    if ending != ".safetensors":
        torch.save(x, tmp_path / f"one{ending}")
        data = load_dataset(tmp_path / f"one{ending}", axes="NHWC")
        alone = torch.load(write(tmp_path / f"alone{ending}", DataDescription.of(data), data.train.double().numpy()), weights_only=True)
        assert alone.dtype == kind and torch.equal(alone, data.train.permute(0, 2, 3, 1).to(kind))


# ---------------------------------------------------------------- NIfTI


def volumes(dtype: str) -> np.ndarray:
    return (50 * RNG.normal(size=(COUNT, 5, 6, 4))).round(0 if dtype[0] != "f" else 3).astype(dtype)


AFFINE = np.array([[2.0, 0, 0, -90], [0, 2.0, 0, -126], [0, 0, 2.5, -72], [0, 0, 0, 1]])


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_nifti_comes_back_with_its_affine_and_header(dtype: str, ending: str, tmp_path: Path) -> None:
    values = volumes(dtype)
    image = nibabel.Nifti1Image(np.moveaxis(values, 0, -1), AFFINE)
    image.header["descrip"], image.header["pixdim"][4] = b"made here", 1.5
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / f"a{ending}")
    data = load_dataset(tmp_path / f"a{ending}")
    assert data.shape == (1, 5, 6, 4) == item_shape(str(tmp_path / f"a{ending}"))
    np.testing.assert_array_equal(everything(data)[:, 0], in_order(values.astype(np.float32)))
    x = data.train.double().numpy()
    after = nibabel.load(write(tmp_path / f"o{ending}", DataDescription.of(data), x))
    assert after.header.get_data_dtype() == dtype and after.shape == (5, 6, 4, len(x))
    np.testing.assert_array_equal(after.affine, AFFINE)
    np.testing.assert_array_equal(np.moveaxis(after.get_fdata(), -1, 0), x[:, 0])
    assert after.header["descrip"].tobytes().rstrip(b"\0") == b"made here" and after.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_folder_of_scaled_volumes_comes_back_as_one(ending: str, tmp_path: Path) -> None:
    raw = volumes("int16")
    for k, volume in enumerate(raw):
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.int16)
        place = tmp_path / "scans" / ("old" if k % 2 else "young")
        place.mkdir(parents=True, exist_ok=True)
        # nibabel gives each its own scale
        nibabel.save(nibabel.Nifti1Image(volume * 0.5 - 3.0, AFFINE, header), place / f"{k:02}{ending}")
    read = np.stack([nibabel.load(file).get_fdata() for file in (tmp_path / "scans").rglob(f"*{ending}")])
    data = load_dataset(tmp_path / "scans")
    assert data.shape == (1, 5, 6, 4) and data.label_names == ("old", "young")
    np.testing.assert_allclose(everything(data)[:, 0], in_order(read.astype(np.float32)))
    x = data.train.double().numpy()
    out = write(tmp_path / "out", DataDescription.of(data), x, np.arange(len(x)) % 2)
    first = nibabel.load(out / "old" / f"000000{ending}")
    steps = [nibabel.load(file).dataobj.slope for file in (tmp_path / "scans").rglob(f"*{ending}")]
    assert first.shape == (5, 6, 4) and first.header.get_data_dtype() == np.int16
    np.testing.assert_array_equal(first.affine, AFFINE)
    for k in range(len(x)):  # whatever the first one's scale reaches
        written = nibabel.load(next(out.rglob(f"{k:06}{ending}"))).get_fdata()
        np.testing.assert_allclose(written, x[k, 0], atol=max(steps))
    assert sorted(file.name for file in out.rglob(f"*{ending}"))[-1] == f"{len(x) - 1:06}{ending}"
    together = nibabel.load(write(tmp_path / f"all{ending}", DataDescription.of(data), x))
    assert together.shape == (5, 6, 4, len(x))
    np.testing.assert_allclose(np.moveaxis(together.get_fdata(), -1, 0), x[:, 0], atol=2 * max(steps))


def test_a_fixed_scale_is_kept(tmp_path: Path) -> None:
    """That of CT, whose numbers are whole and stored with an offset."""
    raw = (1000 + 300 * RNG.normal(size=(5, 6, 4, COUNT))).astype(np.int16)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(raw.shape)
    header.set_slope_inter(1, -1024)
    header["vox_offset"] = 352
    header.set_sform(AFFINE, "scanner")
    (tmp_path / "ct.nii").write_bytes(header.binaryblock + bytes(4) + raw.tobytes("F"))
    data = load_dataset(tmp_path / "ct.nii")
    np.testing.assert_array_equal(everything(data)[:, 0], in_order(np.moveaxis(raw, -1, 0) - 1024.0))
    after = nibabel.load(write(tmp_path / "o.nii", DataDescription.of(data), data.train.double().numpy()))
    assert (after.dataobj.slope, after.dataobj.inter) == (1, -1024) and after.header.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.moveaxis(after.get_fdata(), -1, 0), data.train[:, 0])


# ---------------------------------------------------------------- sound


@pytest.mark.parametrize(
    ("container", "subtype", "step"),
    [("WAV", "PCM_16", 2**-15), ("WAV", "PCM_24", 2**-23), ("WAV", "FLOAT", 0), ("WAV", "DOUBLE", 0), ("FLAC", "PCM_16", 2**-15)],
)
def test_clips_come_back_with_their_rate_and_encoding(container: str, subtype: str, step: float, tmp_path: Path) -> None:
    clips = RNG.uniform(-0.9, 0.9, size=(COUNT, 50, 2)).astype(np.float32)
    ending = f".{container.lower()}"
    for k, clip in enumerate(clips):
        place = tmp_path / "clips" / ("a" if k % 3 else "b")
        place.mkdir(parents=True, exist_ok=True)
        soundfile.write(place / f"{k}{ending}", clip, 22050, subtype=subtype)
    (tmp_path / "clips" / "notes.txt").write_text("not sound")
    data = load_dataset(tmp_path / "clips")
    assert data.shape == (2, 50) == item_shape(str(tmp_path / "clips")) and data.label_names == ("a", "b") and data.levels is None
    read = np.stack([soundfile.read(file)[0].T for file in (tmp_path / "clips").rglob(f"*{ending}")])
    np.testing.assert_array_equal(everything(data), in_order(read.astype(np.float32)))
    x = data.train.double().numpy()
    x[0, 0, :2] = 1.5, -1.5
    about = DataDescription.of(data)
    assert about.finish(torch.from_numpy(x), "files")[1].tolist() == [0, 2 if step else 0], "a PCM file ends at -1 and 1"
    out = write(tmp_path / "out", about, x, np.arange(len(x)) % 2)
    found, rate = soundfile.read(out / "b" / f"000001{ending}")
    info = soundfile.info(out / "a" / f"000000{ending}")
    assert (rate, info.subtype, info.format) == (22050, subtype, container)
    np.testing.assert_array_equal(found.T, x[1].astype(np.float32))
    ends = soundfile.read(out / "a" / f"000000{ending}")[0][:2, 0]
    np.testing.assert_array_equal(ends, [1 - step, -1] if step else [1.5, -1.5])


# ---------------------------------------------------------------- TIFF


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize(("axes", "shape"), [("QYX", (1, 8, 6)), ("QYXS", (3, 8, 6)), ("TZYX", (1, 5, 8, 6))])
def test_pages_of_a_tiff_come_back(dtype: str, axes: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    sizes = (COUNT, *shape[1:]) + ((3,) if "S" in axes else ())
    values = (1000 * RNG.random(sizes)).round(0 if dtype[0] != "f" else 2).astype(np.float64).clip(0, 250).astype(dtype)
    rgb = axes == "QYXS" and dtype[0] == "u"
    options = {"photometric": "rgb" if rgb else "minisblack", "metadata": {"axes": axes}, "resolution": ((300, 1), (200, 1))}
    options |= {"planarconfig": "contig"} if "S" in axes else {}
    tifffile.imwrite(tmp_path / "a.tif", values, resolutionunit="CENTIMETER", **options)
    data = load_dataset(tmp_path / "a.tif")
    assert data.shape == shape == item_shape(str(tmp_path / "a.tif"))
    own = np.moveaxis(values, -1, 1) if "S" in axes else values[:, None]
    np.testing.assert_array_equal(everything(data), in_order(own.astype(np.float32)))
    x = data.train.double().numpy()
    out = write(tmp_path / "o.tif", DataDescription.of(data), x)
    with tifffile.TiffFile(out) as file:
        (series,) = file.series
        page = series.keyframe
        assert series.dtype == dtype and series.axes == axes.replace("T", "Q") and series.shape == (len(x), *sizes[1:])
        assert page.photometric.name == ("RGB" if rgb else "MINISBLACK")
        assert page.tags["XResolution"].value == (300, 1) and page.tags["ResolutionUnit"].value == 3
        written = file.asarray()
    np.testing.assert_array_equal(np.moveaxis(written, -1, 1) if "S" in axes else written[:, None], x.astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "channels", "volume"),
    [("float32", 1, False), ("uint16", 1, False), ("uint16", 3, False), ("uint8", 3, False), ("float32", 1, True)],
)
def test_a_folder_of_tiffs_comes_back_as_one(dtype: str, channels: int, volume: bool, tmp_path: Path) -> None:
    shape = (4, 8, 6) if volume else (8, 6, 3) if channels == 3 else (8, 6)
    for k in range(COUNT):
        image = (250 * RNG.random(shape)).astype(dtype)
        (tmp_path / "set").mkdir(exist_ok=True)
        options = {"metadata": {"axes": "ZYX"}} if volume else {"photometric": "rgb" if channels == 3 else "minisblack"}
        tifffile.imwrite(tmp_path / "set" / f"{k}.tif", image, **options)
    data = load_dataset(tmp_path / "set")
    read = np.stack([tifffile.imread(file) for file in (tmp_path / "set").iterdir()]).astype(np.float32)
    read = np.moveaxis(read, -1, 1) if channels == 3 else read[:, None]
    assert data.shape == read.shape[1:] == item_shape(str(tmp_path / "set"))
    np.testing.assert_array_equal(everything(data), in_order(read))
    x = data.train.double().numpy()
    out = write(tmp_path / "out", DataDescription.of(data), x)
    for k in (0, len(x) - 1):
        written = tifffile.imread(out / f"{k:06}.tif")
        assert written.dtype == dtype
        np.testing.assert_array_equal(np.moveaxis(written, -1, 0) if channels == 3 else written[None], x[k].astype(dtype))


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Bad:
    make: Callable[[Path], Any]
    name: str
    message: str


def many_images(root: Path) -> None:
    (root / "clips").mkdir()
    for k in range(12):
        soundfile.write(root / "clips" / f"{k:02}.wav", np.zeros(20 + 5 * (k > 1)), 8000)


def some_h5(root: Path) -> None:
    with h5py.File(root / "a.h5", "w") as file:
        file["x"] = np.array([["a", "b"], ["c", "d"]], dtype=object)


def damaged_h5(root: Path) -> None:
    """In the midst of a chunk, which nothing but reading it shows."""
    with h5py.File(root / "a.h5", "w") as file:
        chunk = file.create_dataset("x", data=RNG.normal(size=(COUNT, 50)), chunks=(COUNT, 50), compression="gzip").id.get_chunk_info(0)
    content = bytearray((root / "a.h5").read_bytes())
    content[chunk.byte_offset + 100 : chunk.byte_offset + 200] = bytes(100)
    (root / "a.h5").write_bytes(content)


class Planted:
    """Runs when it is unpickled."""

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (Path("executed").touch, ())


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def truncated(name: str, save_it: Callable[[Path], Any], keep: int) -> Bad:
    def make(root: Path) -> None:
        save_it(root / name)
        cut(root / name, keep)

    return Bad(make, name, f"{name}: cannot be read")


def nifti(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(RNG.normal(size=(4, 4, 4, 9)).astype(np.float32), AFFINE), path)


def lines(path: Path) -> None:
    path.write_text("hello\n" * 50)


def single(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(RNG.normal(size=(4, 4, 4)), AFFINE), path)


def bad() -> dict[str, Bad]:
    values = RNG.normal(size=(COUNT, 4, 4))
    field_of = xarray.Dataset({"u": (("time", "y", "x"), values)})
    return {
        "nc of text": Bad(lambda root: lines(root / "a.nc"), "a.nc", "a.nc: cannot be read.*NetCDF file is needed"),
        "nc absent": Bad(lambda root: None, "b.nc", "b.nc: no such file"),
        "nc empty": Bad(lambda root: (root / "a.nc").touch(), "a.nc", "a.nc: empty"),
        "nc cut": truncated("a.nc", lambda path: field_of.to_netcdf(path, engine="h5netcdf"), 3000),
        "classic nc cut": truncated("a.nc", lambda path: field_of.to_netcdf(path, engine="scipy"), 60),
        "nc folder": Bad(lambda root: (root / "a.nc").mkdir(), "a.nc", "a.nc: a directory"),
        "nc without fields": Bad(
            lambda root: xarray.Dataset({"u": ("time", values[:, 0, 0])}).to_netcdf(root / "a.nc", engine="h5netcdf"),
            "a.nc",
            "holds no array of numbers with at least two axes",
        ),
        "nc with NaN": Bad(
            lambda root: xarray.Dataset({"u": (("time", "y", "x"), np.where(values > 2, np.nan, values))}).to_netcdf(
                root / "a.nc", engine="h5netcdf"
            ),
            "a.nc",
            "a.nc.*holds NaN.*--missing nan",
        ),
        "zarr file": Bad(lambda root: lines(root / "a.zarr"), "a.zarr", "a.zarr: a file; a zarr store is needed"),
        "zarr of nothing": Bad(lambda root: (root / "a.zarr").mkdir(), "a.zarr", "a.zarr: cannot be read"),
        "h5 of text": Bad(lambda root: lines(root / "a.h5"), "a.h5", "a.h5: cannot be read.*HDF5 file is needed"),
        "h5 of words": Bad(some_h5, "a.h5", "a.h5: holds no array of numbers"),
        "h5 damaged": Bad(damaged_h5, "a.h5", "a.h5: cannot be read.*HDF5 file is needed"),
        "pt of code": Bad(lambda root: torch.save({"x": Planted()}, root / "a.pt"), "a.pt", "a.pt: holds dict; a tensor"),
        "pt of text": Bad(lambda root: lines(root / "a.pt"), "a.pt", "a.pt: cannot be read .*file of tensors is needed"),
        "pt of a network": Bad(lambda root: torch.save(torch.nn.Linear(2, 2), root / "a.pt"), "a.pt", "a.pt: "),
        "safetensors cut": truncated("a.safetensors", lambda path: safetensors.torch.save_file({"x": torch.rand(20, 3)}, path), 100),
        "nii of text": Bad(lambda root: lines(root / "a.nii"), "a.nii", "a.nii: cannot be read"),
        "nii cut": truncated("a.nii", nifti, 1000),
        "nii.gz cut": truncated("a.nii.gz", nifti, 150),
        "nii.gz of gzip": Bad(lambda root: (root / "a.nii.gz").write_bytes(gzip.compress(b"no")), "a.nii.gz", "a.nii.gz: cannot be read"),
        "one volume": Bad(lambda root: single(root / "a.nii"), "a.nii", r"a.nii: one volume of shape \(4, 4, 4\).*--axes"),
        "one recording": Bad(
            lambda root: soundfile.write(root / "a.wav", np.zeros(100), 8000), "a.wav", "a.wav: one recording of 100 frames.*8000 Hz"
        ),
        "wav of text": Bad(lambda root: lines(root / "a.wav"), "a.wav", "a.wav: cannot be read"),
        "clips of other lengths": Bad(many_images, "clips", r"clips: 10 of 12 files are not like 00.wav.*09.wav.* and 2 more"),
        "tif of text": Bad(lambda root: lines(root / "a.tif"), "a.tif", "a.tif: cannot be read"),
        "tif of one image": Bad(lambda root: tifffile.imwrite(root / "a.tif", values[0]), "a.tif", "a.tif: one image or volume.*--axes"),
    }


@pytest.mark.parametrize("fault", bad())
def test_bad_files_are_one_line(fault: str, tmp_path: Path, sde_gen_command: Command) -> None:
    case = bad()[fault]
    case.make(tmp_path)
    with pytest.raises(ValueError, match=case.message) as caught:
        load_dataset(tmp_path / case.name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    code, out, err = sde_gen_command("run", "--data", str(tmp_path / case.name))
    assert (code, out, len(err)) == (2, [], 1), err
    assert case.name in err[0] and not Path("executed").exists()


@pytest.mark.parametrize("form", [form for form, each in FORMATS.items() if each.packages])
def test_a_package_that_is_not_there_is_named_with_the_command_that_installs_it(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = FORMATS[form]
    path = tmp_path / f"a{each.endings[0]}"
    path.write_bytes(b"anything")
    for package in each.packages:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"a{each.endings[0]}: {each.name} needs .*pip install {' '.join(each.packages)}"):
        load_dataset(path)


def test_formats_are_imported_only_where_one_is_met() -> None:
    """No module of the package imports their libraries when it is imported itself."""
    packages = {package for each in FORMATS.values() for package in each.packages}
    for path in Path(sde_gen.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & packages, path


@pytest.mark.parametrize("out", ["o.nc", "o.zarr", "o.h5", "o.tif", "o.nii.gz", "o.pt", "o.safetensors"])
def test_data_of_another_format_are_written_without_a_header(out: str, tmp_path: Path) -> None:
    shape = (1, 4, 5, 6) if "nii" in out else (3, 4, 5)
    np.save(tmp_path / "a.npy", RNG.normal(size=(COUNT, *shape)).astype(np.float32))
    data = load_dataset(tmp_path / "a.npy", axes="NCDHW" if len(shape) == 4 else "NCHW")
    path = write(tmp_path / out, DataDescription.of(data), data.train.double().numpy())
    again = load_dataset(path, axes="NCHW" if out in ("o.pt", "o.safetensors") else None)
    np.testing.assert_array_equal(everything(again), in_order(data.train.double().numpy()))


def test_forms_that_cannot_hold_the_data_are_refused_before_work() -> None:
    vectors = DataDescription("t", (3,), "float32", None, (False,) * 3, (0.0, 1.0))
    for out, message in (
        ("a.tif", "no images or volumes"),
        ("a.nii", "no volumes"),
        ("a.wav", "a .wav file holds one item; give a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            vectors.check(vectors.form(out))


def test_a_long_recording_is_cut_into_windows(tmp_path: Path) -> None:
    sound = RNG.uniform(-0.9, 0.9, size=(500, 2))
    soundfile.write(tmp_path / "long.flac", sound, 16000)
    data = load_dataset(tmp_path / "long.flac", window=20, stride=10)
    assert (
        data.shape == (2, 20) == item_shape(str(tmp_path / "long.flac"), Reading(window=20))
        and data.test is not None
        and len(data.test) == 4
    )
    read = soundfile.read(tmp_path / "long.flac")[0]
    cut = np.stack([read[first : first + 20].T for first in range(0, 431, 10)])
    np.testing.assert_array_equal(in_order(data.train.double().numpy()), in_order(cut.astype(np.float32)))
    out = write(tmp_path / "clips", DataDescription.of(data), data.train.double().numpy())
    assert soundfile.info(out / "000003.flac").samplerate == 16000
    np.testing.assert_array_equal(soundfile.read(out / "000003.flac")[0].T, data.train[3])


@pytest.mark.parametrize("ending", [".nc", ".h5"])
def test_series_in_files_of_arrays_by_name_are_cut_into_windows(ending: str, tmp_path: Path) -> None:
    values = {"one": RNG.normal(size=200), "two": RNG.normal(size=(200, 3))}
    dims: dict[str, tuple[str, ...]] = {"one": ("time",), "two": ("time", "station")}
    path = tmp_path / f"s{ending}"
    if ending == ".nc":
        save(xarray.Dataset({name: (dims[name], value) for name, value in values.items()}), path)
    else:
        with h5py.File(path, "w") as file:
            for name, value in values.items():
                file[name] = value
    for name, channels in (("one", 1), ("two", 3)):
        data = load_dataset(path, variable=name, window=16)
        assert data.shape == (channels, 16) and len(data.train) == 11
        cut = values[name][:176].reshape(11, 16, channels).transpose(0, 2, 1)
        np.testing.assert_allclose(in_order(data.train.double().numpy()), in_order(cut), rtol=1e-6)
        out = write(tmp_path / f"{name}{ending}", DataDescription.of(data), data.train.double().numpy())
        if ending == ".nc":
            after = opened(out)[name]
            assert after.dims == ("sample", *dims[name][1:], "time") and after.dtype == np.float64
            np.testing.assert_allclose(after.values.reshape(11, channels, 16), data.train, rtol=1e-6)
    both = load_dataset(path, variable=["one", "one"], window=16)
    assert both.shape == (2, 16)


def test_groups_and_conditions_of_a_field_go_with_its_items(tmp_path: Path) -> None:
    found = field().assign(storm=("time", np.arange(COUNT) // 4), wind=("time", RNG.normal(size=COUNT)))
    path = save(found, tmp_path / "f.nc")
    data = load_dataset(path, variable="t2m", conditions=["wind"], group="storm")
    assert data.test is not None and len(data.test) == 4 and set(data.cond) == {"wind"}
    number = {round(float(x.sum()), 2): k for k, x in enumerate(found["t2m"].values)}
    storms = {number[round(float(x.double().sum()), 2)] // 4 for x in data.test}
    assert len(storms) == 1, "one storm is held out whole"
    for x, wind in zip(data.train, data.cond["wind"], strict=True):
        assert float(wind) == pytest.approx(float(found["wind"][number[round(float(x.double().sum()), 2)]]), abs=1e-6)


def test_land_in_a_field_comes_back_as_its_fill_value(tmp_path: Path) -> None:
    """Masked entries go through the model as no data at all, and are what they were in what is written."""
    found = field()
    land = np.zeros((5, 7), bool)
    land[1:3, 4:] = True
    found["t2m"] = found["t2m"].where(~xarray.DataArray(land, dims=("lat", "lon")))
    found["t2m"].encoding = field()["t2m"].encoding
    data = load_dataset(save(found, tmp_path / "f.nc"), variable="t2m", missing="mask")
    assert data.valid is not None and torch.equal(data.valid[0], torch.from_numpy(~land))
    about = DataDescription.from_config(DataDescription.of(data).to_config())
    values = about.finish(data.train, "netcdf", data.valid.numpy())[0]
    write_samples(tmp_path / "o.nc", "netcdf", about, len(values), lambda: iter([(values, None)]), False)
    raw = xarray.open_dataset(tmp_path / "o.nc", engine="h5netcdf", decode_cf=False)["t2m"]
    assert raw.dtype == np.int16 and (raw.values[:, land] == -32767).all() and (raw.values[:, ~land] != -32767).all()
    assert np.isnan(opened(tmp_path / "o.nc")["t2m"].values[:, land]).all()


def test_a_handle_is_opened_again_in_each_process() -> None:
    """HDF5's state, and the place in a sound file, must not be shared with a fork that reads ahead."""
    opened_by = PerProcess(os.getpid)
    assert opened_by() == opened_by() == os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, str(opened_by()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reader, 99)) == child and opened_by() == os.getpid()


def test_plain_tiffs_need_no_package_and_come_back_as_pngs_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 bits, which pillow reads: with the package they come back as they were."""
    (tmp_path / "set").mkdir()
    for k in range(COUNT):
        tifffile.imwrite(tmp_path / "set" / f"{k}.tif", RNG.integers(256, size=(6, 5, 3), dtype=np.uint8), photometric="rgb")
    x = load_dataset(tmp_path / "set").train.double().numpy()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tifffile", None)
        out = write(tmp_path / "pngs", DataDescription.of(load_dataset(tmp_path / "set")), x)
        assert {path.suffix for path in out.iterdir()} == {".png"} and len(list(out.iterdir())) == len(x)
    out = write(tmp_path / "tiffs", DataDescription.of(load_dataset(tmp_path / "set")), x)
    np.testing.assert_array_equal(np.moveaxis(tifffile.imread(out / "000002.tif"), -1, 0), x[2])


@pytest.mark.parametrize("kind", ["f.nc", "f.zarr", "f.h5", "f.nii.gz", "f.tif", "f.pt", "clips", "scans"])
def test_degraded_items_come_back_restored_with_their_header(kind: str, tmp_path: Path) -> None:
    """Those of data in the same format, in the file's order; what was given and is left as it was keeps its own digits."""
    y = RNG.normal(size=(9, 1, 4, 5, 6) if kind in ("f.nii.gz", "scans") else (9, 2, 12) if kind == "clips" else (9, 1, 4, 5))
    y = (0.2 * y).clip(-0.9, 0.9).astype(np.float32)
    names = {"train": tmp_path / ("data" + kind[1:] if "." in kind else "data"), "given": tmp_path / kind}
    for part, path in names.items():
        values = y if part == "given" else y[::-1] + np.float32(0.01)
        if kind in ("f.nc", "f.zarr"):
            save(xarray.Dataset({"u": (("time", "lat", "lon"), values[:, 0], {"units": "K"})}, {"lat": np.arange(4.0)}), path)
        elif kind == "f.h5":
            with h5py.File(path, "w") as file:
                file["u"] = values[:, 0]
                file["u"].attrs["units"] = "K"
        elif kind == "f.nii.gz":
            nibabel.save(nibabel.Nifti1Image(np.moveaxis(values[:, 0], 0, -1), AFFINE), path)
        elif kind == "f.tif":
            tifffile.imwrite(path, values[:, 0], metadata={"axes": "QYX"})
        elif kind == "f.pt":
            torch.save(torch.from_numpy(values), path)
        else:
            path.mkdir()
            for k, value in enumerate(values):
                if kind == "clips":
                    soundfile.write(path / f"{k}.wav", value.T, 8000, subtype="FLOAT")
                else:
                    nibabel.save(nibabel.Nifti1Image(value[0], AFFINE), path / f"{k}.nii")
    options = {"axes": "NHW"} if kind == "f.h5" else {"axes": "NCHW"} if kind == "f.pt" else {}
    about = DataDescription.from_config(DataDescription.of(load_dataset(names["train"], **options)).to_config())
    found = read_degraded(names["given"], about, about.shape)
    np.testing.assert_array_equal(found.y, y)
    for whole, place in ((True, "restored"), (False, "mean")):
        out = found.write(tmp_path / "out" / place, found.y.numpy() + (0 if whole else 0.05), whole)
        again = read_degraded(out, about, about.shape)
        np.testing.assert_allclose(again.y, y + (0 if whole else 0.05), rtol=2e-7, atol=1e-7)
        if kind == "f.nc":
            assert opened(out)["u"].attrs == {"units": "K"} and opened(out)["lat"].shape == (4,)
        if kind == "scans":
            np.testing.assert_array_equal(nibabel.load(out / "3.nii").affine, AFFINE)
    with pytest.raises(ValueError, match=r"items of shape .*is needed, as the operator measures"):
        read_degraded(names["given"], about, (3, 3))
