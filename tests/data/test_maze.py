from __future__ import annotations

import builtins
import sys
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from pyro_hrssm.data import maze
from pyro_hrssm.errors import InputError


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    try:
        return maze.generate(30, 0, num_frames=20)
    except InputError as error:
        pytest.skip(str(error))


def test_arrays(data: dict[str, Any]) -> None:
    assert (data["frames"].shape, data["frames"].dtype) == ((30, 20, 32, 32, 3), np.uint8)
    for name, kind in (("actions", np.int8), ("turns", bool), ("junctions", bool), ("boundaries", bool)):
        assert (data[name].shape, data[name].dtype) == ((30, 20), kind), name
    np.testing.assert_array_equal(data["turns"], data["actions"] != maze.FORWARD)


def test_every_action_is_seen(data: dict[str, Any]) -> None:
    changed = abs(data["frames"][:, 1:].astype(int) - data["frames"][:, :-1]).mean((2, 3, 4))
    assert (changed > 0.01).all()
    # A turn moves the whole image; after a step forward, most distant pixels keep their place.
    turns = data["turns"][:, :-1]
    assert changed[turns].mean() > 1.5 * changed[~turns].mean()


def test_walks_are_made_of_corridors_and_quarter_turns(data: dict[str, Any]) -> None:
    for row in data["actions"]:
        runs = [(action, len(list(group))) for action, group in groupby(row.tolist())]
        for action, length in runs[1:-1]:  # the window cuts the first and the last one
            assert length in ((5, 10, 15, 20) if action == maze.FORWARD else (3, 6)), runs


def test_boundaries_are_the_events(data: dict[str, Any]) -> None:
    for turns, junctions, boundaries in zip(data["turns"], data["junctions"], data["boundaries"], strict=True):
        for t in range(1, 19):
            assert boundaries[t] == (turns[t] != turns[t - 1] or (junctions[t] and not turns[t]))
        assert not boundaries[0]
        assert not boundaries[19]
    assert data["junctions"].any()
    assert data["boundaries"].mean() > 0.1


def test_walkers_stay_in_the_middle_of_corridors(data: dict[str, Any]) -> None:
    world = maze._world(8, 3)
    frames = np.empty((60, 8, 8, 3), np.uint8)
    pitch = maze.ROOM + maze.GAP
    for seed in range(5):
        maze._walk(world, np.random.default_rng(seed), frames)
        place = (world.agent.pos[[0, 2]] - maze.ROOM / 2) / pitch
        # In whole cells along one axis at least, in fifths along the other; no wall ever stopped a step.
        assert min(abs(place - place.round())) < 1e-6
        assert (abs(5 * place - (5 * place).round()) < 1e-6).all()
        assert ((place > -1e-6) & (place < 2 + 1e-6)).all()
    world.close()


def test_same_seed_same_walks_whatever_their_number(data: dict[str, Any]) -> None:
    few = maze.generate(2, 0, num_frames=20)
    for name, values in few.items():
        np.testing.assert_array_equal(values, data[name][:2])
    other = maze.generate(1, 1, num_frames=20)
    assert (other["frames"] != few["frames"][:1]).any()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num": 0}, "num must be at least 1"),
        ({"seed": -1}, "seed at least 0"),
        ({"num_frames": 1}, "num_frames must be at least 2, found 1"),
        ({"image_size": 0}, "image_size must be at least 1, found 0"),
        ({"num_cells": 1}, "num_cells must lie between 2 and 16, found 1"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        maze.generate(**{"num": 2, "seed": 0, **parameters})


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (ModuleNotFoundError("No module named 'miniworld'"), r"extra maze .*pip install 'pyro-hrssm\[maze\]'"),
        (ImportError('Library "EGL" not found.'), r'OpenGL with EGL \(Library "EGL" not found.\): .* libegl1 libgl1'),
    ],
)
def test_what_is_missing_is_named(missing: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] in ("miniworld", "pyglet"):
            raise missing
        return real(name, *arguments)

    for name in [name for name in sys.modules if name.split(".")[0] in ("miniworld", "pyglet")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=message):
        maze.generate(1, 0)
