"""From a file of a format to samples in it, by the command line alone."""

from pathlib import Path

import numpy as np
import pytest
from toys import TINY_RUN, Command

RNG = np.random.default_rng(0)


def run_and_sample(command: Command, data: str, out: str, *flags: str) -> list[str]:
    code, printed, err = command("run", *TINY_RUN, "--solver", "ddim", "--data", data, "--out", "run", *flags)
    assert (code, err) == (0, []), err
    code, said, err = command("sample", "--run", "run", "--samples", "20", "--no-progress", "--batch-size", "8", "--out", out)
    assert (code, err) == (0, []), err
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]
    return printed + said


@pytest.mark.parametrize(("data", "out"), [("f.nc", "o.nc"), ("f.zarr", "o.zarr"), ("f.nc", "o.h5"), ("f.nc", "o.zarr")])
def test_fields(data: str, out: str, sde_gen_command: Command) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    pytest.importorskip("zarr")
    dims, coords = ("time", "lat", "lon"), {"lat": np.linspace(60, 50, 4), "lon": np.linspace(0, 6, 4)}
    scales = {"t2m": 280 + 10 * RNG.normal(size=(60, 4, 4)), "q": 1e-7 * RNG.normal(size=(60, 4, 4))}
    found = xarray.Dataset({name: (dims, values.astype(np.float32), {"units": "K"}) for name, values in scales.items()}, coords)
    found.to_zarr(data, consolidated=False) if data.endswith("zarr") else found.to_netcdf(data, engine="h5netcdf")
    said = run_and_sample(sde_gen_command, data, out, "--variable", "t2m", "--variable", "q")
    assert any("variables t2m, q (time 60, lat 4, lon 4)" in line for line in said), said
    assert any(f"samples   {out}: 20 of shape 2x4x4 (float32, axes NHW), in the units of {data}" in line for line in said), said
    if out.endswith(".h5"):
        h5py = pytest.importorskip("h5py")
        with h5py.File(out) as file:
            assert file["t2m"].shape == (20, 4, 4) and file["t2m"].attrs["units"] == "K"
            np.testing.assert_array_equal(file["lat"][:], coords["lat"])
            assert file["t2m"].dims[1][0].name == "/lat"
        return
    after = xarray.open_zarr(out, consolidated=False) if out.endswith("zarr") else xarray.open_dataset(out, engine="h5netcdf")
    assert after["t2m"].shape == (20, 4, 4) and after["q"].attrs == {"units": "K"} and 100 < float(after["t2m"].mean()) < 400
    assert float(abs(after["q"]).max()) < 1e-5
    np.testing.assert_array_equal(after["lat"], coords["lat"])


def test_sound(sde_gen_command: Command) -> None:
    soundfile = pytest.importorskip("soundfile")
    for k in range(60):
        Path("clips", "ab"[k % 2]).mkdir(exist_ok=True, parents=True)
        soundfile.write(Path("clips", "ab"[k % 2], f"{k}.wav"), RNG.uniform(-0.5, 0.5, 8), 8000)
    said = run_and_sample(sde_gen_command, "clips", "new", "--labels")
    assert any("60 clips: 8x1, float32, rate 8000, subtype PCM_16" in line for line in said), said
    files = sorted(Path("new").rglob("*.wav"))
    assert len(files) == 20 and {path.parent.name for path in files} == {"a", "b"}
    assert soundfile.info(files[0]).samplerate == 8000 and soundfile.info(files[0]).frames == 8


def test_pictures_of_mixed_modes_and_deep_tiffs(sde_gen_command: Command) -> None:
    tifffile = pytest.importorskip("tifffile")
    from PIL import Image

    Path("mixed").mkdir()
    for k in range(60):
        shape = (4, 4, 4) if k % 2 else (4, 4)
        Image.fromarray(RNG.integers(256, size=shape, dtype=np.uint8)).save(f"mixed/{k}.png")
    code, _, err = sde_gen_command("run", *TINY_RUN, "--data", "mixed")
    assert code == 2 and len(err) == 1 and "30 of 60 images cannot be used" in err[0] and "--mode" in err[0]
    run_and_sample(sde_gen_command, "mixed", "pictures", "--mode", "rgba")
    assert Image.open("pictures/000000.png").mode == "RGBA" and len(list(Path("pictures").iterdir())) == 20
    Path("deep").mkdir()
    for k in range(60):
        tifffile.imwrite(f"deep/{k}.tif", RNG.normal(size=(4, 4)).astype(np.float32))
    run_and_sample(sde_gen_command, "deep", "more", "--retrain")
    assert tifffile.imread("more/000019.tif").dtype == np.float32 and tifffile.imread("more/000000.tif").shape == (4, 4)


def test_a_field_is_scored_and_restored(sde_gen_command: Command) -> None:
    """The file's own form stays: its gaps are filled under its own coordinates."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    values = RNG.normal(size=(60, 4, 4)).astype(np.float32)
    coords = {"lat": np.linspace(60, 50, 4)}
    xarray.Dataset({"u": (("time", "lat", "lon"), values, {"units": "K"})}, coords).to_netcdf("f.nc", engine="h5netcdf")
    code, _, err = sde_gen_command("run", *TINY_RUN, "--solver", "ddim", "--data", "f.nc", "--out", "run")
    assert (code, err) == (0, [])
    code, _, err = sde_gen_command("score", "f.nc", "--run", "run", "--out", "scores.csv")
    assert (code, err) == (0, []) and len(Path("scores.csv").read_text().splitlines()) == 61, err
    holed = values[:5].copy()
    holed[2, 1, 1] = np.nan
    xarray.Dataset({"u": (("time", "lat", "lon"), holed, {"units": "K"})}, coords).to_netcdf("g.nc", engine="h5netcdf")
    few = ("--samples", "8", "--particles", "8", "--steps", "4", "--written", "1", "--no-progress")
    code, _, err = sde_gen_command("restore", "--run", "run", "--input", "g.nc", "--out", "restored", *few)
    assert (code, err) == (0, []), err
    files = sorted(Path("restored").rglob("*.nc"))
    assert len(files) >= 3, files
    for file in files:
        after = xarray.open_dataset(file, engine="h5netcdf")["u"]
        assert after.shape == (5, 4, 4) and after.attrs == {"units": "K"} and not np.isnan(after).any()
        np.testing.assert_array_equal(after["lat"], coords["lat"])
