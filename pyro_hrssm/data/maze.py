"""Walks through 3D mazes (Kim, Ahn and Bengio 2019, section 5.2), rendered without a screen by MiniWorld."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_hrssm.errors import InputError, one_line, require
from pyro_hrssm.progress import bar

LEFT, RIGHT, FORWARD = 0, 1, 2
"""Actions, numbered as in MiniWorld."""

ROOM, GAP = 3.0, 0.25  # MiniWorld's maze, in metres
STEPS = 5  # from the middle of one cell to the next
TURN = 30  # degrees of one turning action

WALLS = ("brick_wall", "wood", "marble", "lava", "slime", "water", "grass", "stucco")
"""Textures of the cells' walls, which tell one corridor from the next at 32 pixels."""


class _Step(NamedTuple):
    """The walker's step after one frame."""

    action: int
    junction: bool
    """Whether the frame shows the middle of a cell with three ways out or more."""


def generate(
    num: int, seed: int, *, num_frames: int = 25, image_size: int = 32, num_cells: int = 4
) -> dict[str, NDArray[Any]]:
    """A walker follows the corridors of a random maze, and at a junction takes a random way other than back.

    Each sequence has its own maze: a spanning tree of square cells whose walls have random textures. The walker
    goes forward for 5 frames from one cell to the next, and turns by 30 degrees per frame in the middle of cells.
    A segment ends where the walker starts to turn, has finished a turn, or goes straight on through a junction.

    Args:
        num: number of sequences N, the episodes.
        seed: seed of mazes and walks.
        num_frames: number of frames T.
        image_size: pixels along each side.
        num_cells: number of cells along each side of a maze.

    Returns:
        `frames` uint8 [N, T, side, side, 3]; `actions` int8 [N, T], the walker's action after each frame (0 turns
        left, 1 turns right, 2 goes forward); `turns` bool [N, T], True where the action is a turn; `junctions` bool
        [N, T], True where the frame is seen from a junction's middle on arrival; and `boundaries` bool [N, T].

    Raises:
        InputError: where a parameter is out of its range, and where MiniWorld or OpenGL is missing.
    """
    require(num >= 1 and seed >= 0, f"num must be at least 1 and seed at least 0, found {num} and {seed}")
    require(num_frames >= 2, f"num_frames must be at least 2, found {num_frames}")
    require(image_size >= 1, f"image_size must be at least 1, found {image_size}")
    require(2 <= num_cells <= 16, f"num_cells must lie between 2 and 16, found {num_cells}")
    world = _world(image_size, num_cells)
    frames = np.empty((num, num_frames, image_size, image_size, 3), np.uint8)
    actions = np.empty((num, num_frames), np.int8)
    junctions = np.empty((num, num_frames), bool)
    try:
        # Each sequence has its own seed, so that the first sequences do not depend on their number.
        for row, child in enumerate(bar(np.random.SeedSequence(seed).spawn(num), desc="maze", unit="episode")):
            for t, step in enumerate(_walk(world, np.random.default_rng(child), frames[row])):
                actions[row, t], junctions[row, t] = step
    finally:
        world.close()
    turns = actions != FORWARD
    return {
        "frames": frames,
        "actions": actions,
        "turns": turns,
        "junctions": junctions,
        "boundaries": _boundaries(turns, junctions),
    }


def _boundaries(turns: NDArray[np.bool_], junctions: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The union of events: turning starts or ends after this frame, or a junction is passed straight through."""
    before = np.concatenate([turns[:, :1], turns[:, :-1]], axis=1)
    boundaries = (turns != before) | (junctions & ~turns)
    # No segment ends with the first or the last frame: the sequence would show nothing of one side of the boundary.
    boundaries[:, [0, -1]] = False
    return boundaries


def _walk(world: Any, rng: np.random.Generator, frames: NDArray[np.uint8]) -> list[_Step]:
    """Fill in the frames [T, side, side, 3] of one episode, and return one step per frame."""
    world.reset(seed=int(rng.integers(2**31)))
    ways = world.ways
    cell = sorted(ways)[rng.integers(len(ways))]
    heading = sorted(ways[cell])[rng.integers(len(ways[cell]))]
    # A random number of forward steps comes first, so that walks do not all start in a cell's middle.
    planned = [_Step(FORWARD, False)] * int(rng.integers(1, STEPS + 1))
    _place(world, cell, heading, (STEPS - len(planned)) / STEPS)
    cell = _next(cell, heading)
    steps: list[_Step] = []
    for frame in frames:
        if not planned:
            planned, heading = _plan(ways[cell], heading, rng)
            cell = _next(cell, heading)
        step = planned.pop(0)
        frame[...] = world.render_obs()
        _take(world, step.action)
        steps.append(step)
    return steps


def _plan(ways: set[int], heading: int, rng: np.random.Generator) -> tuple[list[_Step], int]:
    """The steps from a cell's middle to the next one's, and the chosen heading, in quarter turns to the left."""
    back = (heading + 2) % 4
    onwards = sorted(ways - {back}) or [back]
    chosen = onwards[rng.integers(len(onwards))]
    quarters = (chosen - heading) % 4
    turn = [RIGHT] * (90 // TURN) if quarters == 3 else [LEFT] * (quarters * 90 // TURN)
    actions = turn + [FORWARD] * STEPS
    junction = len(ways) > 2
    return [_Step(action, junction and index == 0) for index, action in enumerate(actions)], chosen


def _next(cell: tuple[int, int], heading: int) -> tuple[int, int]:
    """The neighbour of a cell (column, row); heading 0 leads to higher columns, 1 to lower rows."""
    across, down = ((1, 0), (0, -1), (-1, 0), (0, 1))[heading]
    return cell[0] + across, cell[1] + down


def _place(world: Any, cell: tuple[int, int], heading: int, share: float) -> None:
    """Put the walker a share of the way from a cell's middle to the next one's."""
    after = _next(cell, heading)
    x, z = ((a + share * (b - a)) * (ROOM + GAP) + ROOM / 2 for a, b in zip(cell, after, strict=True))
    world.agent.pos = np.array([x, 0.0, z])
    world.agent.dir = heading * np.pi / 2


def _take(world: Any, action: int) -> None:
    if action == FORWARD:
        world.move_agent((ROOM + GAP) / STEPS, 0.0)
    else:
        world.turn_agent(TURN if action == LEFT else -TURN)


def _world(image_size: int, num_cells: int) -> Any:
    """MiniWorld's maze without its red box; `ways` holds the headings to which each cell (column, row) is open."""
    maze = _miniworld()

    class World(maze):  # type: ignore[misc, valid-type] # known once MiniWorld is there
        ways: dict[tuple[int, int], set[int]]

        def connect_rooms(self, room: Any, neighbour: Any, **kwargs: Any) -> None:
            super().connect_rooms(room, neighbour, **kwargs)
            here, there = self._cell(room), self._cell(neighbour)
            heading = next(heading for heading in range(4) if _next(here, heading) == there)
            self.ways.setdefault(here, set()).add(heading)
            self.ways.setdefault(there, set()).add((heading + 2) % 4)

        def _cell(self, room: Any) -> tuple[int, int]:
            return round(room.min_x / (ROOM + GAP)), round(room.min_z / (ROOM + GAP))

        def _gen_world(self) -> None:
            self.ways = {}
            super()._gen_world()
            self.entities.remove(self.box)

        def add_rect_room(self, **kwargs: Any) -> Any:
            return super().add_rect_room(**kwargs | {"wall_tex": WALLS[self.np_random.integers(len(WALLS))]})

    sizes = {"num_rows": num_cells, "num_cols": num_cells, "obs_width": image_size, "obs_height": image_size}
    with contextlib.redirect_stdout(io.StringIO()):  # MiniWorld prints the number of samples per pixel
        return World(room_size=ROOM, **sizes)


def _miniworld() -> Any:
    """MiniWorld's `Maze`; an :class:`InputError` names the packages to install if MiniWorld or OpenGL is missing."""
    try:
        import pyglet

        # Set before MiniWorld is imported: rendering by EGL needs no screen.
        pyglet.options["headless"] = sys.platform == "linux"
        from miniworld.envs.maze import Maze
    except ModuleNotFoundError as error:
        raise InputError(
            f"the maze needs the extra maze ({one_line(error)}): pip install 'pyro-hrssm[maze]'"
        ) from error
    except Exception as error:  # ImportError, OSError or AttributeError, depending on the missing library
        raise InputError(
            f"the maze needs OpenGL with EGL ({one_line(error)}): on Debian or Ubuntu, "
            "apt install libegl1 libgl1 libglu1-mesa libgl1-mesa-dri"
        ) from error
    return Maze
