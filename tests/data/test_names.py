"""The names of an archive's sequences: read where they are texts or numbers of all of them, and kept by splits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_hrssm import data
from pyro_hrssm.config import DataConfig
from pyro_hrssm.data import Scaling
from pyro_hrssm.errors import InputError

FRAMES = np.random.default_rng(0).random((10, 4, 3))


def written(folder: Path, **further: Any) -> str:
    np.savez(folder / "mine.npz", frames=FRAMES, **further)
    return str(folder / "mine.npz")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.array([f"ä{number}" for number in range(10)]), [f"ä{number}" for number in range(10)]),
        (np.array([f"b{number}" for number in range(10)], "S"), [f"b{number}" for number in range(10)]),
        (np.array([b"\xff"] * 10), ["\ufffd"] * 10),
        (np.array(["\ud800"] * 10), ["?"] * 10),  # a text that no file can hold
        (np.arange(100, 110), [str(number) for number in range(100, 110)]),
    ],
)
def test_names_follow_their_sequences(tmp_path: Path, given: np.ndarray, expected: list[str]) -> None:
    path = written(tmp_path, names=given)
    whole = data.whole(path, Scaling())
    assert whole.names is not None
    assert whole.names.tolist() == expected
    assert whole.rows.tolist() == list(range(10))
    splits = data.load(DataConfig(data=path))
    for part in (splits.train, splits.held_out, splits.train.subset([2, 0])):
        assert part.names is not None
        assert part.names.tolist() == [expected[row] for row in part.rows]
        first = part.scaling.invert(part.batch([0]).frames[0].numpy())
        np.testing.assert_allclose(first, FRAMES[part.rows[0]], rtol=1e-5)  # float32


@pytest.mark.parametrize("given", [np.array(["x", "y", "z"]), np.full((10, 2), "x"), np.zeros(10), np.array("x")])
def test_an_array_of_another_meaning_names_nothing(tmp_path: Path, given: np.ndarray) -> None:
    assert data.whole(written(tmp_path, names=given), Scaling()).names is None


def test_a_folder_holds_names_in_a_file_of_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", FRAMES)
    np.save(tmp_path / "labels.npy", np.zeros((10, 4), int))
    assert data.whole(str(tmp_path), Scaling()).names is None
    given = [f"x{number}" for number in range(10)]
    np.save(tmp_path / "names.npy", np.array(given))
    found = data.whole(str(tmp_path), Scaling()).names
    assert found is not None
    assert found.tolist() == given
    np.save(tmp_path / "names.npy", np.array(given[1:]))
    assert data.whole(str(tmp_path), Scaling()).names is None


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_link_of_any_name_leads_to_the_names(tmp_path: Path, kind: str) -> None:
    given = np.array([f"x{number}" for number in range(10)])
    if kind == "npz":
        written(tmp_path, names=given)
        (tmp_path / "linked").symlink_to("mine.npz")
    else:
        (tmp_path / "mine.npz").mkdir()  # whatever a folder is called
        np.save(tmp_path / "mine.npz" / "0.npy", FRAMES)
        np.save(tmp_path / "mine.npz" / "names.npy", given)
        (tmp_path / "linked").symlink_to("mine.npz")
    splits = data.load(DataConfig(str(tmp_path / "linked")))
    assert splits.train.names is not None
    assert splits.train.names.tolist() == given[splits.train.rows].tolist()


def test_files_without_names_have_none(tmp_path: Path) -> None:
    assert data.whole(written(tmp_path), Scaling()).names is None
    np.save(tmp_path / "mine.npy", FRAMES)
    assert data.whole(str(tmp_path / "mine.npy"), Scaling()).names is None


def test_names_that_would_have_to_be_unpickled_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, names=np.array(["x"] * 10, object))
    with pytest.raises(InputError, match=r"mine.npz: names must be an array of texts, found ValueError: ") as refusal:
        data.whole(path, Scaling())
    assert "\n" not in str(refusal.value)
