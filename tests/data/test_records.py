"""The record of a generator: written into archives, read back, and ignored where it is anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_hrssm import data
from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import Sequences, arrays, colours, levels, records

FRAMES = np.arange(5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)


def test_a_record_names_all_parameters_and_is_read_back() -> None:
    text = records.write("levels", levels.generate, num=3, seed=np.int64(4), noise=(0.5, np.float32(0.25)))
    assert records.read(text) == (
        "levels",
        {
            "num": 3, "seed": 4, "noise": [0.5, 0.25],
            "num_frames": 60, "num_levels": 6, "min_length": 4, "max_length": 14, "level_seed": 0,
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "levels", "[" * 100_000, "3", '{"name": "levels"}', '{"name": 3, "parameters": {}}', "null"]
)
def test_any_other_text_is_no_record(text: str) -> None:
    assert records.read(text) is None
    assert data.process(text) is None


@pytest.mark.parametrize("name", ["balls", "colours", "levels"])
def test_archives_keep_the_record_of_their_generator(name: str, tmp_path: Path) -> None:
    made = data.generate(name, 6, 5, num_frames=7)
    data.save_npz(tmp_path / "made.npz", **made)
    text = arrays.read(tmp_path / "made.npz").generator
    assert text is not None
    found = records.read(text)
    assert found is not None
    assert (found[0], found[1]["num_frames"]) == (name, 7)
    again = data.generate(found[0], **found[1])
    assert all(np.array_equal(again[key], made[key]) for key in made)
    splits = data.load(DataConfig(data=str(tmp_path / "made.npz")))
    whole = data.whole(str(tmp_path / "made.npz"), splits.scaling)
    for sequences in (*splits[:2], whole, whole.subset([1])):
        assert sequences.generator == text
    assert (data.process(text) is None) == (name == "balls")


@pytest.mark.parametrize("name", ["colours", "levels"])
def test_named_data_sets_have_a_record(name: str) -> None:
    splits = data.load(DataConfig(data=name))
    found = records.read(splits.held_out.generator or "")
    assert found is not None
    made = data.generate(found[0], **found[1])
    assert len(made["frames"]) == len(splits.train) + len(splits.held_out)
    rows = splits.scaling.invert(splits.train.batch([0]).frames)
    nearest = abs(made["frames"] - rows).max((1, 2)).min()
    assert nearest < 1e-5  # float32, scaled and back


@pytest.mark.parametrize(
    "value",
    [3, ["levels", "levels"], b"levels", np.array([{}], object), "x" * 2**16],
    ids=["a number", "two texts", "bytes", "an object", "a long text"],
)
def test_an_array_of_that_name_may_be_a_users_own(value: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "my.npz", frames=FRAMES, generator=np.asarray(value))
    content = arrays.read(tmp_path / "my.npz")
    assert content.generator is None
    np.testing.assert_array_equal(content.frames.rows(np.arange(5)), FRAMES)


def test_the_record_says_the_process() -> None:
    record = records.write("levels", levels.generate, num=3, seed=4, noise=(0.5, 0.25), min_length=2)
    process = data.process(record)
    assert process is not None
    assert (process.means.shape, process.noise.tolist()) == ((6, 2), [0.5, 0.25])
    assert (process.min_length, process.max_length) == (2, 14)
    record = records.write("colours", colours.generate, num=3, seed=4, repeat=0.25, num_colours=4, image_size=2)
    process = data.process(record)
    assert process is not None
    np.testing.assert_array_equal(process.chain, colours.transitions(4, 0.25))
    np.testing.assert_array_equal(process.means, colours.PALETTE[:4])


@pytest.mark.parametrize(
    "change",
    [
        {"noise": "much"}, {"noise": None}, {"noise": -1.0}, {"num_colours": 9}, {"num_colours": 2.5},
        {"max_length": 10**400}, {"min_length": 0}, {"repeat": [0.5]}, {"fresh": 1},
    ],
)  # fmt: skip
def test_a_record_of_wrong_or_further_parameters_says_no_process(change: dict[str, Any]) -> None:
    name, parameters = "colours", {"num": 1, "seed": 0, "image_size": None, "num_frames": 20}
    parameters |= {"num_colours": 8, "min_length": 2, "max_length": 6, "repeat": 0.0, "noise": 0.1}
    assert data.process(json.dumps({"name": name, "parameters": parameters})) is not None
    assert data.process(json.dumps({"name": name, "parameters": parameters | change})) is None


def test_a_record_does_not_change_the_digest_of_sequences() -> None:
    assert Sequences(FRAMES, generator="x").digest() == Sequences(FRAMES).digest()
