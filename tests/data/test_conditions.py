"""Conditions of the user's own files: what they are, and that they stay with their items."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sde_gen
from sde_gen.conditions import fit_condition
from sde_gen.data import Dataset, Source, from_torch, load_dataset, validate
from sde_gen.data.arrays import load_npz
from sde_gen.data.folders import load_images

N = 3000
RNG = np.random.default_rng(0)
WORDS = np.array(["north", "south coast", "west"])
AGE = np.round(RNG.uniform(20, 80, N), 2)
SITE = np.arange(N) * 3 // N  # sorted by class


def write_table(path: Path, gap: str = "", extra: str = "") -> None:
    """Rows of which every cell tells the number of the row; ages have gaps and so has every 50th site."""
    with path.open("w") as file:
        file.write(f"a,age,SITE COLUMN,b{',same' * bool(extra)}\n")
        for k in range(N):
            site = "NA" if k % 50 == 7 else WORDS[SITE[k]]
            file.write(f"{k},{gap if k % 10 == 3 else AGE[k]},{site},{k + 0.5}{extra}\n")


def check_rows(x: Tensor, cond: dict[str, Any]) -> None:
    """The conditions of each item are those of its row."""
    rows = x[:, 0].long().numpy()
    np.testing.assert_array_equal(cond["age"], np.where(rows % 10 == 3, np.nan, AGE[rows]))
    np.testing.assert_array_equal(cond["site"], np.where(rows % 50 == 7, 3, SITE[rows]))


@pytest.mark.parametrize("options", [{}, {"split": "tail"}, {"limit": 500}])
def test_columns_of_a_table_leave_the_data_and_stay_with_their_rows(tmp_path: Path, options: dict[str, Any]) -> None:
    write_table(tmp_path / "t.csv")
    data = load_dataset(tmp_path / "t.csv", conditions=("age", "site=SITE COLUMN"), **options)
    assert data.columns == ("a", "b") and data.shape == (2,) and list(data.cond) == ["age", "site"]
    assert data.cond["age"].dtype == torch.float64 and data.cond["site"].dtype == torch.int64
    assert data.cond_names == {"site": tuple(WORDS)} and data.cond_columns == {"age": ("age", 1), "site": ("SITE COLUMN", 2)}
    assert data.test is not None and len(data.train) == options.get("limit", 2700) and len(data.test) == 300
    check_rows(data.train, dict(data.cond))
    check_rows(data.test, dict(data.test_cond))
    if options.get("split") == "tail":
        assert set(data.test_cond["site"].tolist()) == {2, 3}, "the end of a file that is sorted by site"
    else:
        assert {0, 1, 2} <= set(data.cond["site"][:20].tolist()), "in a random order"
    assert any(note.startswith("condition 'age': a number; not known of ") for note in data.notes)
    assert any("condition 'site': 3 classes (north, south coast, west); not known of" in note for note in data.notes)
    spec = fit_condition("site", data.cond["site"], (), names=data.cond_names["site"])
    assert {"kind": "label", "classes": 3, "names": list(WORDS)}.items() <= spec.items()
    age = fit_condition("age", data.cond["age"], ())
    assert age["kind"] == "numbers" and age["mean"] == pytest.approx([float(data.cond["age"].nanmean())])


def test_marks_of_missing_cells_leave_out_items_by_their_data_alone(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", "-9999")
    text = (tmp_path / "t.csv").read_text().replace(",77.5\n", ",-9999\n", 1)
    (tmp_path / "t.csv").write_text(text)
    data = load_dataset(tmp_path / "t.csv", conditions=("age", "site=2"), missing=-9999)
    assert data.test is not None and len(data.train) + len(data.test) == N - 1
    check_rows(data.train, dict(data.cond))
    assert 77.0 not in torch.cat((data.train, data.test))[:, 0]
    write_table(tmp_path / "t.csv", "?")
    with_word = load_dataset(tmp_path / "t.csv", conditions=("age", "site=2"), missing="?")
    check_rows(with_word.train, dict(with_word.cond))


def test_a_table_without_a_header_and_with_an_index(tmp_path: Path) -> None:
    rows = [f"{k},{'xyz'[k % 3]},{k / 2}" for k in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    data = load_dataset(tmp_path / "t.csv", conditions=("kind=1",))
    assert len(data.train) == 90 and data.columns is None and data.cond_columns == {"kind": (None, 1)}
    assert torch.equal(data.cond["kind"], data.train[:, 0].long() % 3)
    assert list(load_dataset(tmp_path / "t.csv", conditions=("1",)).cond) == ["1"]
    (tmp_path / "i.csv").write_text("\n".join([",a,kind,b", *(f"r{k},{k},{'xyz'[k % 3]},{k / 2}" for k in range(100))]))
    data = load_dataset(tmp_path / "i.csv", conditions=("kind",))
    assert (
        data.columns == ("a", "b")
        and data.cond_columns == {"kind": ("kind", 1)}
        and torch.equal(data.cond["kind"], data.train[:, 0].long() % 3)
    )


def test_the_signature_knows_the_conditions(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv")
    data = load_dataset(tmp_path / "t.csv", conditions=("age", "site=SITE COLUMN"))
    again = load_dataset(tmp_path / "t.csv", conditions=("age", "site=SITE COLUMN"))
    plain = load_dataset(tmp_path / "t.csv", conditions=("age", "n=SITE COLUMN"))
    other = dataclasses.replace(data, cond=dict(data.cond) | {"age": data.cond["age"] + 1})
    assert data.signature() == again.signature() and data.signature()["conditions"] == ["age", "site"]
    assert data.signature() != plain.signature() and data.signature()["sha256"] != other.signature()["sha256"]


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    """3,000 images of 6 x 5 whose first entry is the row, with a condition of each kind that tells the row too."""
    k = np.arange(N)
    x = RNG.normal(size=(N, 1, 6, 5)).astype(np.float32)
    x[:, 0, 0, 0] = k
    coarse = np.zeros((N, 2, 3, 5), np.float32) + k[:, None, None, None]
    coarse[::4, 1] = np.nan
    found = {
        "x": x,
        "site": WORDS[SITE],
        "grade": k % 4,
        "dose": k.astype(np.float32),
        "pair": np.c_[k, np.where(k % 3 == 0, np.nan, k)],
        "steps": np.zeros((N, 7, 3)) + k[:, None, None],
        "low": coarse,
        "full": np.zeros((N, 6, 5)) + k[:, None, None],
        "seen": (np.zeros((N, 1, 6, 5)) + k[:, None, None, None]) % 2 == 0,
    }
    return found | changes


def same_rows(x: Tensor, cond: dict[str, Any]) -> None:
    k = x[:, 0, 0, 0].long()
    assert torch.equal(cond["site"], torch.from_numpy(SITE)[k]) and torch.equal(cond["grade"], k % 4)
    assert torch.equal(cond["dose"], k.float())
    assert torch.equal(cond["pair"][:, 0].long(), k) and torch.equal(cond["pair"][:, 1].isnan(), k % 3 == 0)
    for name, shape in (("steps", (7, 3)), ("low", (2, 3, 5)), ("full", (1, 6, 5))):
        assert cond[name].shape == (len(k), *shape) and torch.equal(cond[name].flatten(1)[:, 0].long(), k), name
    assert torch.equal(cond["low"][:, 1, 0, 0].isnan(), k % 4 == 0)
    assert torch.equal(cond["seen"].flatten(1)[:, 0].bool(), k % 2 == 0)


KINDS = {
    **{"site": "label", "grade": "label", "dose": "numbers", "pair": "numbers", "steps": "sequence"},
    **{"low": "map", "full": "map", "seen": "mask"},
}


def test_arrays_of_every_kind_beside_the_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    data = load_dataset(tmp_path / "a.npz", conditions=tuple(KINDS), limit=400)
    same_rows(data.train, dict(data.cond))
    assert data.test is not None and len(data.test) == 300
    same_rows(data.test, dict(data.test_cond))
    found = {name: fit_condition(name, value, (6, 5), names=data.cond_names.get(name)) for name, value in data.cond.items()}
    assert {name: spec["kind"] for name, spec in found.items()} == KINDS
    assert data.cond_names == {"site": tuple(WORDS), "grade": (0, 1, 2, 3)}
    assert any("condition 'low': a map of 2 channels on 3x5; not known of" in note for note in data.notes)
    assert any("condition 'seen': a mask of 1 channel on 6x5" in note for note in data.notes)
    assert any("condition 'steps': a sequence of 7 places, 3 numbers each" in note for note in data.notes)


def test_larger_than_memory_conditions_are_read_where_the_data_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    whole = load_npz(tmp_path / "a.npz", conditions=tuple(KINDS))
    small = load_npz(tmp_path / "a.npz", conditions=tuple(KINDS), in_memory=4 * 30 * 500)
    assert small.source is not None and len(small.source) == 2700 and len(small.train) == 500, small.notes
    same_rows(small.train, dict(small.cond))
    assert {name for name, value in small.source_cond.items() if isinstance(value, Source)} == set(KINDS) - {"site", "grade"}
    rows = torch.tensor([2500, 3, 3, 77])
    for part, index in ((small, rows), (whole, rows)):
        items = part.conditions(tuple(KINDS), "all")
        same_rows(part.training[0][index], {name: value[index] for name, value in items.items()})
    k = np.arange(N)
    np.savez(tmp_path / "b.npz", x=np.c_[k, k], long=np.zeros((N, 40, 3), np.float32) + k[:, None, None])
    big = load_npz(tmp_path / "b.npz", conditions=("long",), in_memory=4 * 2 * 2700)
    assert load_npz(tmp_path / "b.npz", in_memory=4 * 2 * 2700).source is None, "the items alone fit"
    items, long = big.training[0], big.source_cond["long"]
    assert isinstance(items, Source) and isinstance(long, Source) and torch.equal(items[rows][:, 0], long[rows][:, 7, 2])
    assert whole.source is None and not whole.source_cond


def test_a_training_on_disk_is_told_the_same_as_one_in_memory(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    losses = []
    for in_memory in (4 * 30 * 2699, 1 << 30):
        data = load_npz(tmp_path / "a.npz", conditions=tuple(KINDS), in_memory=in_memory)
        assert (data.source is None) == (in_memory == 1 << 30)
        whole = load_npz(tmp_path / "a.npz", conditions=tuple(KINDS))
        specs = {name: fit_condition(name, value, (6, 5), names=data.cond_names.get(name)) for name, value in whole.cond.items()}
        options = {"width": 8, "multipliers": [1], "attention": []}
        model = sde_gen.training.build_model(whole.train, network="unet", network_options=options, conditions=specs)
        settings = sde_gen.training.TrainSettings(steps=3, batch=16, drop=0.3, evaluations=1)
        result = sde_gen.training.fit(model, data.training[0], settings, data.conditions(specs, "all"), progress=False)
        losses.append([entry["loss"] for entry in result.history])
    assert losses[0] == losses[1]


def test_held_out_arrays_have_conditions_of_their_own(tmp_path: Path) -> None:
    k = np.arange(200.0)
    both = {"x": np.c_[k, k], "age": k, "x_test": np.c_[k, k][:50] + 0.5, "age_test": k[:50] + 0.5, "site": WORDS[SITE[:200]]}
    np.savez(tmp_path / "a.npz", **both, site_test=WORDS[SITE[:50]])
    data = load_dataset(tmp_path / "a.npz", conditions=("age", "place=site"))
    assert data.test is not None and torch.equal(data.test[:, 0].double(), data.test_cond["age"])
    assert set(data.test_cond) == {"age", "place"} and data.held_out(("age",))[0] is data.test
    np.savez(tmp_path / "a.npz", **{key: value for key, value in both.items() if key != "age_test"})
    data = load_dataset(tmp_path / "a.npz", conditions=("age",))
    assert data.held_out(("age",)) == (None, {}) and any("the held-out part has no condition 'age'" in note for note in data.notes)


def test_channels_are_put_first_as_those_of_the_data(tmp_path: Path) -> None:
    x = RNG.normal(size=(60, 9, 8, 3))
    low = RNG.normal(size=(60, 3, 4, 2))
    np.savez(tmp_path / "a.npz", x=x, low=low)
    data = load_dataset(tmp_path / "a.npz", conditions=("low",), axes="NHWC")
    assert data.shape == (3, 9, 8) and data.cond["low"].shape[1:] == (2, 3, 4)
    row = int((torch.from_numpy(x[:, 0, 0]).float() == data.train[5, :, 0, 0]).all(1).nonzero())
    np.testing.assert_array_equal(data.cond["low"][5], low[row].transpose(2, 0, 1).astype(np.float32))


def pictures(folder: Path, names: list[str], size: tuple[int, int], ending: str, mode: str = "L") -> None:
    """Images whose value is the number in their name."""
    for name in names:
        path = folder / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        value = int(name.rsplit("/", 1)[-1])
        Image.fromarray(np.full((*size, 3) if mode == "RGB" else size, value, np.uint8)).save(path)


NAMES = [f"{'cat' if k % 2 else 'dog'}/{k}" for k in range(80)]


@pytest.mark.parametrize("in_memory", [1 << 30, 3000])
def test_a_folder_of_maps_goes_with_the_images_of_its_names(tmp_path: Path, in_memory: int) -> None:
    pictures(tmp_path / "faces", NAMES, (8, 8), ".png", "RGB")
    pictures(tmp_path / "maps", NAMES[::-1], (4, 4), ".bmp")
    data = load_images(tmp_path / "faces", in_memory=in_memory, condition_map=tmp_path / "maps")
    assert data.cond["map"].shape[1:] == (1, 4, 4) and data.classes == 2 and data.test is not None
    for x, m in ((data.train, data.cond["map"]), (data.test, data.test_cond["map"])):
        assert torch.equal(x[:, 0, 0, 0], m[:, 0, 0, 0])
    assert torch.equal(data.train_labels, 1 - data.cond["map"][:, 0, 0, 0].long() % 2)  # type: ignore[arg-type]
    if in_memory == 3000:
        items, maps = data.training[0], data.source_cond["map"]
        assert isinstance(items, Source) and isinstance(maps, Source)
        assert torch.equal(items[torch.arange(72)][:, 1, 3, 3], maps[torch.arange(72)][:, 0, 3, 3])


def test_maps_of_a_split_in_an_archive_and_of_black_and_white(tmp_path: Path) -> None:
    names = [f"{part}/{k}" for part, numbers in (("train", range(60)), ("test", range(60, 80))) for k in numbers]
    pictures(tmp_path / "all", names, (8, 8), ".png")
    for name in names:
        path = tmp_path / "seen" / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), int(name.rsplit("/", 1)[-1]) % 2 == 0)).save(path)
    shutil.make_archive(str(tmp_path / "seen"), "zip", tmp_path / "seen")
    data = load_dataset(tmp_path / "all", condition_map=tmp_path / "seen.zip")
    assert data.test is not None and len(data.test) == 20 and data.test_cond["map"].dtype == torch.bool
    assert torch.equal(data.test[:, 0, 0, 0] % 2 == 0, data.test_cond["map"][:, 0, 0, 0])
    assert fit_condition("map", data.cond["map"], (8, 8))["kind"] == "mask"


def test_resized_images_take_coarse_maps_as_they_are_and_others_resized(tmp_path: Path) -> None:
    pictures(tmp_path / "faces", NAMES, (9, 12), ".png")
    pictures(tmp_path / "low", NAMES, (3, 3), ".png")
    pictures(tmp_path / "high", NAMES, (9, 12), ".png")
    for folder, grid in (("low", (3, 3)), ("high", (6, 6))):
        data = load_dataset(tmp_path / "faces", size=6, condition_map=tmp_path / folder)
        assert data.cond["map"].shape[2:] == grid and torch.equal(data.cond["map"][:, 0, 0, 0], data.train[:, 0, 0, 0])


class Told(torch.utils.data.Dataset[Any]):
    """Items (x, dict) or (x, label, dict)."""

    def __init__(self, labelled: bool, **changes: Any) -> None:
        self.labelled, self.changes, self.asked = labelled, changes, 0

    def __len__(self) -> int:
        return 200

    def __getitem__(self, k: int) -> Any:
        self.asked += 1
        cond = {
            "age": float(k),
            "field": torch.full((1, 3, 3), float(k)),
            "word": str(WORDS[k % 3]),
            "grade": k % 2,
            "gap": None if k % 4 == 0 else k + 0.5,
        }
        cond = {name: value for name, value in cond.items() if self.changes.get(name, True) is not None} | {
            name: value(k) for name, value in self.changes.items() if value is not None
        }
        x = torch.full((1, 6, 6), float(k)) + torch.arange(36.0).reshape(1, 6, 6) / 100
        return (x, k % 5, cond) if self.labelled else (x, cond)


@pytest.mark.parametrize("labelled", [False, True])
def test_items_of_a_torch_data_set_bring_their_conditions(labelled: bool) -> None:
    data = from_torch(Told(labelled))
    k = data.train[:, 0, 0, 0].long()
    assert data.classes == (5 if labelled else None) and data.cond_names == {"word": tuple(WORDS), "grade": (0, 1)}
    assert torch.equal(data.cond["age"].long(), k) and torch.equal(data.cond["field"][:, 0, 1, 1].long(), k)
    assert torch.equal(data.cond["word"], k % 3) and torch.equal(data.cond["grade"], k % 2)
    assert torch.equal(data.cond["gap"].isnan(), k % 4 == 0)


def test_items_that_are_asked_for_batch_by_batch_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Told(True, word=None, grade=None, gap=None)
    data = from_torch(dataset, in_memory=4 * 36 * 20)
    assert data.source is not None and isinstance(data.source_cond["field"], Source) and set(data.cond) == {"age", "field"}
    index = torch.tensor([150, 2, 2])
    before = dataset.asked
    x = data.source[index]
    for name in ("age", "field"):
        assert torch.equal(
            data.source_cond[name][index].flatten(1)[:, 0].double() if name == "field" else data.source_cond[name][index],
            x[:, 0, 0, 0].double(),
        )
    assert dataset.asked == before + 3, "an item is read once for its values and all its conditions"
    with pytest.raises(
        ValueError, match=r"condition 'word' of item 0 is 'north'; of items that are read batch by batch they must be floats"
    ):
        from_torch(Told(True, grade=None), in_memory=4 * 36 * 20)


def test_what_is_the_same_everywhere_is_said(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", extra=",5")
    data = load_dataset(tmp_path / "t.csv", conditions=("same", "age", "SITE COLUMN"))
    said = [note for note in data.notes if "is the same for all training items" in note]
    assert len(said) == 1 and "'same'" in said[0]
    text = (tmp_path / "t.csv").read_text().replace(f",{AGE[5]},", ",oops,", 1)
    (tmp_path / "t.csv").write_text(text)
    with_word = load_dataset(tmp_path / "t.csv", conditions=("age", "site=2"))
    assert any("'age' is read as classes though most of its cells are numbers: it holds 'oops'" in note for note in with_word.notes)


def test_bad_conditions_are_one_line(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", extra=",")
    np.savez(tmp_path / "a.npz", **arrays(short=np.zeros(7), fine=np.zeros((N, 1, 12, 5)), inf=np.full(N, np.inf)), none=np.full(N, np.nan))
    np.savez(tmp_path / "h.npz", x=RNG.normal(size=(50, 2)), s=np.arange(50) % 2, x_test=RNG.normal(size=(20, 2)), s_test=np.arange(20))
    np.save(tmp_path / "x.npy", RNG.normal(size=(50, 2)))
    pictures(tmp_path / "faces", NAMES, (8, 8), ".png")
    pictures(tmp_path / "less", NAMES[1:], (8, 8), ".png")
    pictures(tmp_path / "more", [*NAMES, "cat/99"], (8, 8), ".png")
    pictures(tmp_path / "fine", NAMES, (16, 16), ".png")
    pictures(tmp_path / "mixed", NAMES[:40], (8, 8), ".png")
    pictures(tmp_path / "mixed", NAMES[40:], (4, 4), ".png")
    pictures(tmp_path / "twice", NAMES, (8, 8), ".png")
    pictures(tmp_path / "twice", NAMES[3:4], (8, 8), ".bmp")
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("t.csv", {"conditions": ("height",)}, "no column 'height' for a condition; its columns are a, age, SITE COLUMN, b, same"),
        ("t.csv", {"conditions": ("age", "age")}, "column 'age' is asked for as two conditions, 'age' and 'age'"),
        ("t.csv", {"conditions": ("n=age", "n=b")}, "two conditions called 'n'"),
        ("t.csv", {"conditions": ("label=age",)}, "'label' is what the labels are called"),
        ("t.csv", {"conditions": ("=age",)}, "condition '=age'; COLUMN or NAME=COLUMN is needed"),
        ("t.csv", {"conditions": ("site=2",), "label_column": "2"}, "'SITE COLUMN' is asked for as the labels and as a condition"),
        ("t.csv", {"conditions": ("age", "same", "2")}, "condition 'same' is known of no training item"),
        ("t.csv", {"conditions": ("a", "age", "2", "b", "same")}, "no column beside the labels and conditions"),
        ("t.csv", {"condition_map": "maps"}, "condition_map='maps' is for images"),
        ("a.npz", {"conditions": ("nothing",)}, "no array 'nothing' for a condition; its arrays are"),
        ("a.npz", {"conditions": ("short",)}, r"condition 'short' has shape \(7,\) for 3,000 data items"),
        ("a.npz", {"conditions": ("fine",)}, "'fine' is a map of 12x5, finer than the data's 6x5"),
        ("a.npz", {"conditions": ("inf",)}, "item 0 holds infinite values"),
        ("a.npz", {"conditions": ("none",)}, "condition 'none' is known of no training item"),
        ("h.npz", {"conditions": ("s",)}, "condition 's' of a held-out item is 2, which no training item has"),
        ("x.npy", {"conditions": ("s",)}, "is for columns of a table or arrays of an .npz file"),
        ("faces", {"conditions": ("s",)}, "is for columns of a table or arrays of an .npz file; condition_map is for images"),
        ("faces", {"condition_map": "nowhere"}, "nowhere: no such folder or archive"),
        ("faces", {"condition_map": "less"}, "less: no map of 1 of 80 images, the first dog/0"),
        ("faces", {"condition_map": "more"}, "more: 1 of 81 maps of no image, the first cat/99"),
        ("faces", {"condition_map": "fine"}, "'map' is a map of 16x16, finer than the data's 8x8; the same or a coarser grid is needed"),
        ("faces", {"condition_map": "mixed"}, "one size and mode for all images is needed"),
        ("faces", {"condition_map": "twice"}, "another image has this name but for its ending"),
        ("digits", {"conditions": ("s",)}, "data 'digits' takes no .*conditions"),
    ]
    for name, given, message in cases:
        path = name if name == "digits" else str(tmp_path / name)
        options = given | ({"condition_map": tmp_path / given["condition_map"]} if given.get("condition_map", "maps") != "maps" else {})
        with pytest.raises(ValueError, match=message) as caught:
            load_dataset(path, **options)
        assert "\n" not in str(caught.value), given
    for changes, message in (
        ({"age": lambda k: float(k) if k else "x"}, "condition 'age' is words and numbers"),
        ({"field": lambda k: torch.zeros(k % 3 + 1, 2)}, r"condition 'field' is of shapes \(1, 2\) and \(2, 2\)"),
        ({"age": lambda k: None}, "condition 'age' is None"),
    ):
        with pytest.raises(ValueError, match=message):
            from_torch(Told(False, **changes))
    with pytest.raises(ValueError, match=r"'s' \(its last class: not known\) span 0..4; 0..2 is allowed"):
        validate(Dataset("mine", torch.randn(5, 2), cond={"s": torch.arange(5)}, cond_names={"s": ("a", "b")}))


def test_maps_are_found_by_name_and_not_by_order(tmp_path: Path) -> None:
    for folder, ending in (("faces", ".png"), ("maps", ".bmp")):  # a.c.png comes before a.png, a.bmp before a.c.bmp
        (tmp_path / folder).mkdir()
        for value, name in enumerate(["a", "a.c", *map(str, range(60))]):
            Image.fromarray(np.full((6, 6), value, np.uint8)).save(tmp_path / folder / f"{name}{ending}")
    data = load_dataset(tmp_path / "faces", condition_map=tmp_path / "maps")
    assert torch.equal(data.train, data.cond["map"]) and {0, 1} <= {*data.train.flatten().tolist(), *data.test.flatten().tolist()}  # type: ignore[union-attr]
