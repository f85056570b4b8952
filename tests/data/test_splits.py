from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import load_dataset
from sde_gen.data.splits import groups_drawn


def rows_of(part: torch.Tensor) -> list[int]:
    """The numbers of the items, which are their first column."""
    return sorted(part[:, 0].int().tolist())


def table(path: Path, count: int = 200, **columns: list[str]) -> Path:
    random = np.random.default_rng(0)
    header = ["a", "b", *columns]
    lines = [[str(k), f"{random.normal():.5f}", *(column[k] for column in columns.values())] for k in range(count)]
    path.write_text("\n".join(",".join(line) for line in (header, *lines)))
    return path


def test_whole_groups_are_held_out_and_are_no_data(tmp_path: Path):
    groups = [f"p{k % 17}" for k in range(200)]
    data = load_dataset(table(tmp_path / "t.csv", patient=groups), group="patient")
    held = {groups[row] for row in rows_of(data.test)}
    assert data.columns == ("a", "b") and not data.cond
    assert not held & {groups[row] for row in rows_of(data.train)} and 15 <= len(data.test) <= 30
    assert len(data.train) + len(data.test) == 200
    again = load_dataset(tmp_path / "t.csv", group=2)
    assert torch.equal(again.test, data.test)
    x = np.stack([np.arange(200.0), np.random.default_rng(1).normal(size=200)], 1)
    np.savez(tmp_path / "t.npz", x=x, patient=np.array(groups))
    assert rows_of(load_dataset(tmp_path / "t.npz", group="patient").test) == rows_of(data.test)


def test_a_large_group_is_passed_over():
    groups = np.repeat(np.arange(6), [500, 20, 20, 20, 20, 20])
    for count in (40, 60):
        held = groups_drawn("t", groups, count)
        assert 0 not in held and count <= np.isin(groups, held).sum() <= 1.5 * count
    assert groups_drawn("t", np.repeat([0, 1], [10, 90]), 5).tolist() == [0]  # the smallest, where all are too large


def test_a_stratified_split_has_each_class_in_its_share(tmp_path: Path):
    labels = ["rare"] * 13 + ["some"] * 57 + ["common"] * 130
    data = load_dataset(table(tmp_path / "t.csv", kind=labels), label_column="kind", split="stratified")
    names = ["common", "rare", "some"]
    assert data.test_labels.bincount().tolist() == [13, 1, 6] and data.train_labels.bincount().tolist() == [117, 12, 51]
    assert rows_of(torch.cat((data.train, data.test))) == list(range(200))
    assert data.test_labels.tolist() == [names.index(labels[int(a)]) for a in data.test[:, 0]]  # they go with their items


def test_bad_splits_are_one_line(tmp_path: Path):
    path = table(tmp_path / "t.csv", patient=["a"] * 200, gaps=["a"] * 199 + [""])
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(50, 2)))
    for options, words in (
        ({"group": "patient", "conditions": ["gaps"]}, "all 200 items are of one group; at least two"),
        ({"group": "gaps", "conditions": ["patient"]}, "item 199 has no group"),
        ({"group": "doctor", "conditions": ["gaps"]}, "no column 'doctor' for the groups; its columns are a, b, patient, gaps"),
        ({"group": "patient", "conditions": ["patient", "gaps"]}, "'patient' is asked for as the groups and a condition"),
        ({"group": "patient", "conditions": ["gaps"], "split": "random"}, "groups are held out whole; split='random'"),
        ({"conditions": ["patient", "gaps"], "split": "stratified"}, "there are no labels"),
        ({"conditions": ["patient", "gaps"], "split": "even"}, "split 'even'; random, stratified or tail is allowed"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            load_dataset(path, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="group='who' is"):
        load_dataset(tmp_path / "t.npy", group="who")
