"""Scores of forecast distributions: the CRPS and the coverage of a central interval, by frames ahead.

A forecast is an ensemble: `M` draws of a frame that was not given, with the emission's noise. A model stands beside
persistence and, where one is given, a flat model, on the same entries and with as many draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_hrssm.data.batches import Batch, in_order
from pyro_hrssm.data.sequences import Sequences
from pyro_hrssm.errors import require
from pyro_hrssm.host import on_host
from pyro_hrssm.inference.memory import rows_at_once
from pyro_hrssm.inference.prediction import Settings, forecast
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.masks import observed_entries

Floats = NDArray[np.floating[Any]]

INTERVAL = (0.1, 0.9)
"""Levels of the quantiles that bound the central interval."""

NOMINAL = 0.8
"""Share of the observations that the central interval of a right forecast holds, on average."""

DRAWS = 100
"""Number of draws unless quantiles in the tails need more."""

MOST_DRAWS = 10_000
"""The most draws that quantiles get unless their number is named."""

POOL_SEQUENCES, POOL_NUMBERS = 500, 2**24
"""The most sequences, and about the most numbers, from whose changes persistence draws."""

CHANGES = 10_000
"""The most changes of one lag from which it draws."""


def least_draws(levels: Sequence[float]) -> int:
    """The smallest number of draws among which no quantile of these levels lies outside: see :func:`quantiles`."""
    tail = min(min(level, 1 - level) for level in levels)
    return max(1, math.ceil(1 / tail - 1 - 1e-6))  # 1 / (1 - 0.9) is a little more than 10


def draws_for(levels: Sequence[float], named: int | None) -> int:
    """The number of draws for quantiles of these levels, where `named` is the user's own number or None.

    Raises :class:`InputError` for a level outside (0, 1) or given twice, and for too few draws.
    """
    shown = " ".join(f"{level:g}" for level in levels)
    require(all(0 < level < 1 for level in levels), f"quantiles must lie between 0 and 1, found {shown}")
    require(len(set(levels)) == len(levels), f"quantiles must differ from each other, found {shown}")
    least = least_draws(levels)
    count = max(DRAWS, min(least, MOST_DRAWS)) if named is None else named
    require(count >= least, f"quantiles {shown} need num_samples of at least {least}, found {count}")
    return count


def quantiles(draws: ArrayLike | Tensor, levels: Sequence[float]) -> Floats:
    """Quantiles [Q, …] of draws [M, …]: that of level p stands at the place p (M + 1) of the sorted draws.

    A new draw from the same distribution then lies below it with the probability p, where p (M + 1) is a whole number,
    however few the draws are. Source: Hyndman and Fan 1996, definition 6.
    """
    return np.quantile(on_host(draws), np.asarray(levels), axis=0, method="weibull")


def crps(draws: ArrayLike | Tensor, observed: ArrayLike | Tensor) -> NDArray[np.float64]:
    """Continuous ranked probability score of every entry, in the units of the entry; 0 is perfect.

    The fair estimator of `E|X - y| - E|X - X'| / 2`, the mean over all pairs of different draws: its expectation is the
    score of the distribution from which the draws come, whatever their number. Sources: Gneiting and Raftery 2007,
    equation 21; Zamo and Naveau 2018, section 2.

    Arguments:
        draws: [M, …], M of at least 2.
        observed: […].
    """
    ordered = np.sort(on_host(draws).astype(np.float64), axis=0)
    count = len(ordered)
    require(count >= 2, f"the CRPS needs at least 2 draws, found {count}")
    # In the sum of x_j - x_i over all pairs i < j of sorted draws, the i-th draw stands 2 i - M - 1 times, from i = 1.
    times = 2.0 * np.arange(1, count + 1) - count - 1
    spread = np.tensordot(times, ordered, 1) / (count * (count - 1))
    score: NDArray[np.float64] = np.abs(ordered - on_host(observed)).mean(0) - spread
    return score


def plain(value: Any) -> Any:
    """A score ready for JSON, which has no NaN: None for a number that is not known."""
    return None if isinstance(value, float) and math.isnan(value) else value


def said(value: float, form: str) -> str:
    """A score in this format, in words where it is not known."""
    return "unknown" if math.isnan(value) else format(value, form)


@dataclass(frozen=True)
class ForecastScore:
    """Scores of one forecaster at one horizon: means over the observed entries of a frame, then over sequences."""

    crps: float
    """In the data's own units; lower is better."""
    crps_standard_error: float
    """Standard error of `crps` over sequences; NaN of a single one."""
    crps_scaled: float
    """In the model's units, in which entries of different units weigh alike."""
    coverage: float
    """Share of the observed entries inside the central interval."""
    crps_of_entries: list[float | None] | None = None
    """[X] in the data's own units, where a frame is a vector; None for an entry that was never observed."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {name: plain(value) for name, value in vars(self).items() if value is not None}

    def text(self) -> str:
        """The scores in a line of a table."""
        return (
            f"CRPS {self.crps:.4g} ± {said(self.crps_standard_error, '.2g')} (scaled {self.crps_scaled:.4g}), "
            f"{100 * self.coverage:.1f} % inside the {100 * NOMINAL:.0f} % interval"
        )


@dataclass(frozen=True)
class ForecastScores:
    """Scores of all forecasters, by horizon: the frame so many frames after the last given one."""

    given: int
    """Number of frames that forecasts start from, context included."""
    num_samples: int
    """Draws of each forecast."""
    changes: str
    """Whose changes persistence draws: those of `training` sequences, or of the `given` frames of the scored ones."""
    sequences: dict[int, int]
    """Number of sequences scored, by horizon: those whose frame there is observed, and any of the given ones."""
    scores: dict[int, dict[str, ForecastScore]]
    """By horizon: `model`, `persistence` where frames that far apart are known, and `flat` where one was given."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        horizons: dict[str, Any] = {}
        for horizon, found in self.scores.items():
            by_name = {name: score.to_dict() for name, score in found.items()}
            horizons[str(horizon)] = {"sequences": self.sequences[horizon], **by_name}
        about = {"given": self.given, "num_samples": self.num_samples, "interval": NOMINAL}
        return {**about, "persistence_changes": self.changes, "horizons": horizons}

    def rows(self) -> Iterator[tuple[str, str]]:
        """Name and text of each row of a table."""
        for horizon, found in self.scores.items():
            if not found:
                yield f"forecast of frame +{horizon}", "never observed"
            for name, score in found.items():
                yield (f"forecast of frame +{horizon}" if name == "model" else f"  {name}"), score.text()


class _Tally:
    """Scores of the sequences seen so far, of one forecaster at one horizon."""

    def __init__(self, scale: NDArray[np.float64]) -> None:
        self.scale = scale
        self.parts: list[NDArray[np.float64]] = []
        self.entries: NDArray[np.float64] | float = 0.0
        self.counts: NDArray[np.int64] | int = 0

    def add(self, draws: Floats, frames: Floats, seen: NDArray[np.bool_]) -> None:
        """Score draws [M, n, X…] of frames [n, X…], in the model's units, where `seen` [n, X…]: somewhere in each."""
        scaled = np.where(seen, crps(draws, frames), 0.0)
        own = scaled * self.scale
        low, high = quantiles(draws, INTERVAL)
        inside = seen & (low <= frames) & (frames <= high)
        axes = tuple(range(1, seen.ndim))
        self.parts.append(np.stack([value.sum(axes) for value in (own, scaled, inside)]) / seen.sum(axes))
        self.entries, self.counts = self.entries + own.sum(0), self.counts + seen.sum(0)

    def score(self) -> ForecastScore | None:
        """The scores; None where no sequence was scored."""
        each = np.concatenate(self.parts, 1) if self.parts else np.empty((3, 0))
        count = each.shape[1]
        if count == 0:
            return None
        own, scaled, inside = each.mean(1).tolist()
        error = float(each[0].std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
        entries, counts = np.asarray(self.entries), np.asarray(self.counts)
        of_entries = None
        if entries.ndim == 1:
            of_entries = [
                total / times if times else None for total, times in zip(entries.tolist(), counts.tolist(), strict=True)
            ]
        return ForecastScore(own, error, scaled, inside, of_entries)


class Persistence:
    """Forecasts from the last observed value of every entry: a change between two frames as far apart is added to it.

    The changes are drawn from those of the same entry in other sequences: the forecast of a random walk whose steps
    need not be Normal. Without them, the CRPS of a repeated frame would be its absolute error, and its interval empty.

    Arguments:
        frames: [N, T, X…], scaled.
        seen: [N, T] where these are observed, or [N, T, X…] where their entries are.
        limits: values that forecasts do not leave.
        seed: seed of the draws.
    """

    def __init__(self, frames: Floats, seen: NDArray[np.bool_], limits: tuple[float, float], seed: int) -> None:
        self._frames = frames.reshape(frames.shape[0] * frames.shape[1], -1)
        self._seen = seen.reshape(*seen.shape[:2], -1)
        self._limits = limits
        self._random = np.random.default_rng(seed % 2**64)
        self._starts: dict[tuple[int, int], NDArray[np.int64]] = {}

    def draws(self, last: Floats, lags: NDArray[np.int64], count: int) -> Floats | None:
        """Draws [count, n, X…]; None where no two values of an entry are as far apart as one of its lags.

        Arguments:
            last: [n, X…] each entry's last observed value.
            lags: [n, X…] number of frames from there to the frame that is forecast; 0 where no forecast is asked for.
        """
        values = last.reshape(len(last), -1)
        result = np.zeros((count, *values.shape), np.float32)
        for lag in np.unique(lags[lags > 0]).tolist():
            rows, entries = np.nonzero(lags.reshape(values.shape) == lag)
            kinds = entries if self._seen.shape[2] > 1 else np.zeros_like(entries)
            for kind in np.unique(kinds).tolist():
                starts = self._pairs(lag, kind)
                if len(starts) == 0:
                    return None
                row, entry = rows[kinds == kind], entries[kinds == kind]
                chosen = self._random.choice(starts, (count, len(row)))
                changes = self._frames[chosen + lag, entry] - self._frames[chosen, entry]
                result[:, row, entry] = values[row, entry] + changes
        return result.reshape(count, *last.shape).clip(*self._limits)

    def _pairs(self, lag: int, kind: int) -> NDArray[np.int64]:
        """Places of the first of two frames that are so far apart, along N and T, both observed; some of them if many.

        Arguments:
            kind: the entry that must be observed; 0 where frames are observed whole.
        """
        if (lag, kind) not in self._starts:
            seen = self._seen[..., kind]
            both = np.zeros_like(seen)
            if lag < both.shape[1]:
                both[:, :-lag] = seen[:, :-lag] & seen[:, lag:]
            found = np.flatnonzero(both)
            some = found if len(found) <= CHANGES else self._random.choice(found, CHANGES, replace=False)
            self._starts[lag, kind] = some
        return self._starts[lag, kind]

    @classmethod
    def of(cls, sequences: Sequences, model: StateSpaceModel, seed: int, stop: int | None = None) -> Persistence:
        """Changes within the first `stop` frames, or all frames, of the first of these sequences."""
        fitting = POOL_NUMBERS // (sequences.num_frames * math.prod(sequences.frame_shape))
        batch = sequences.batch(range(min(len(sequences), POOL_SEQUENCES, max(1, fitting))))
        frames = batch.frames[:, :stop].numpy()
        seen = np.ones(frames.shape[:2], bool) if batch.mask is None else batch.mask[:, :stop].numpy() > 0
        limits = (0.0, 1.0) if model.config.likelihood == "bernoulli" else (-math.inf, math.inf)
        return cls(frames, seen, limits, seed)


def forecast_scores(
    model: StateSpaceModel,
    sequences: Sequences,
    training: Sequences | None = None,
    *,
    given: int,
    horizons: Sequence[int],
    flat: StateSpaceModel | None = None,
    num_samples: int = DRAWS,
    seed: int = 1,
    most: int | None = None,
) -> ForecastScores:
    """Score forecasts of the frame 1, 5, … frames after the last given one.

    Missing frames are not scored, nor are sequences of which no given frame is observed.

    Arguments:
        sequences: the sequences to forecast, in the model's units.
        training: sequences whose changes persistence draws; where None, those within the given frames.
        given: number of frames that forecasts start from, context included.
        horizons: different numbers of frames ahead.
        flat: a further model, which takes frames of the same units.
        num_samples: draws of each forecast, at least 9.
        seed: seed of persistence's draws; the models' come from torch.
        most: the most sequences times draws in one pass; fewer where memory asks for it.

    Raises:
        InputError: where a number is out of range.
    """
    check(model, sequences.num_frames, given, horizons, num_samples)
    persistence = Persistence.of(*((sequences, model, seed, given) if training is None else (training, model, seed)))
    models = {"model": model} if flat is None else {"model": model, "flat": flat}
    rows = min(rows_at_once(each, sequences.num_frames, most) for each in models.values())
    scale = np.asarray(sequences.scaling.scale, np.float64)
    names = ("model", "persistence", "flat")
    tallies = {horizon: {name: _Tally(scale) for name in names} for horizon in horizons}
    counts, unknown = dict.fromkeys(horizons, 0), set[int]()
    for task in _tasks(sequences, model.device, given, horizons, max(1, rows // num_samples)):
        ahead = {name: draws_ahead(each, task, given, horizons, num_samples, rows) for name, each in models.items()}
        for index, horizon in enumerate(horizons):
            seen = task.observed[:, index]
            here = seen.reshape(len(seen), -1).any(1)
            if not here.any():
                continue
            seen, counts[horizon] = seen[here], counts[horizon] + int(here.sum())
            lags = np.where(seen, task.lags[here] + horizon, 0)
            walked = persistence.draws(task.last[here], lags, num_samples)
            unknown |= {horizon} if walked is None else set()
            found = {name: draws[:, here, index] for name, draws in ahead.items()}
            for name, draws in (found if walked is None else found | {"persistence": walked}).items():
                tallies[horizon][name].add(draws, task.targets[here, index], seen)
    for horizon in unknown:  # its forecasts of a part of the sequences could not be compared
        del tallies[horizon]["persistence"]
    scores = {
        horizon: {name: score for name, tally in by_name.items() if (score := tally.score()) is not None}
        for horizon, by_name in tallies.items()
    }
    changes = "given" if training is None else "training"
    return ForecastScores(given, num_samples, changes, counts, scores)


def check(model: StateSpaceModel, total: int, given: int, horizons: Sequence[int], num_samples: int) -> None:
    """Raise :class:`InputError` where forecasts of sequences of `total` frames cannot be scored as asked."""
    least = model.config.context + 1
    require(least <= given < total, f"given must lie between {least} and {total - 1}, found {given}")
    fits = all(1 <= horizon <= total - given for horizon in horizons)
    require(fits, f"horizons must lie between 1 and {total - given}, found {', '.join(map(str, horizons))}")
    draws_for(INTERVAL, num_samples)


class _Task(NamedTuple):
    """Sequences to forecast, of each of which something is given and something to score."""

    frames: Tensor
    """[B, given, X…]"""
    mask: Tensor | None
    """The data's own mask of these frames."""
    last: Floats
    """[B, X…] last observed value of every entry; any value where none is observed."""
    lags: NDArray[np.int64]
    """[B, X…] number of frames from there to the last given one; 0 where no given frame has the entry."""
    unseen: NDArray[np.int64]
    """[B] number of given frames after the last one that is observed, if only in part."""
    targets: Floats
    """[B, horizons, X…]"""
    observed: NDArray[np.bool_]
    """[B, horizons, X…] where these are observed, and their entry in any given frame."""


def _tasks(
    sequences: Sequences, device: torch.device, given: int, horizons: Sequence[int], size: int
) -> Iterator[_Task]:
    """The sequences that can be scored, `size` of them at a time at most."""
    targets = [given + horizon - 1 for horizon in horizons]
    for batch in in_order(sequences, device):
        seen = observed_entries(batch.frames, batch.mask)
        for rows in can_be_judged(seen, given, targets).nonzero().squeeze(1).split(size):
            if len(rows) > 0:  # a tensor without elements is split into one part
                yield _task(batch, seen[rows], rows, given, targets)


def can_be_judged(seen: Tensor, given: int, targets: list[int] | slice) -> Tensor:
    """[B] bool: whether a forecast from the first `given` frames can be compared with the frames `targets`.

    That takes an entry that is observed among both.

    Arguments:
        seen: [B, T, X…] bool, where an entry is observed.
    """
    return (seen[:, :given].any(1) & seen[:, targets].any(1)).flatten(1).any(1)


def _task(batch: Batch, seen: Tensor, rows: Tensor, given: int, targets: list[int]) -> _Task:
    frames = batch.frames[rows]
    first_mask = None if batch.mask is None else batch.mask[rows, :given]
    lags, unseen = _since_seen(seen[:, :given]), _since_seen(seen[:, :given].flatten(2).any(2))
    last = frames.gather(1, (given - 1 - lags).unsqueeze(1)).squeeze(1)
    observed = seen[:, targets] & seen[:, :given].any(1, keepdim=True)
    host = (value.cpu().numpy() for value in (last, lags, unseen, frames[:, targets], observed))
    return _Task(frames[:, :given], first_mask, *host)


def _since_seen(seen: Tensor) -> Tensor:
    """[B, …] number of frames after the last one for which a flag [B, T, …] is set; 0 where none is."""
    return seen.flip(1).to(torch.uint8).argmax(1)  # the first one of equal values


def draws_ahead(
    model: StateSpaceModel, task: _Task, given: int, horizons: Sequence[int], count: int, rows: int
) -> Floats:
    """Draws [count, B, horizons, X…] of the frames ahead, `rows` of them in one pass at most."""
    # The future of a sequence starts where it was last observed, and not at the last given frame.
    ahead = max(horizons) + int(task.unseen.max())
    places = [given + horizon - 1 - model.config.context for horizon in horizons]
    at_once, parts = max(1, rows // len(task.lags)), []
    for start in range(0, count, at_once):
        settings = Settings(min(at_once, count - start), draw=True, chunk_size=rows)
        parts.append(forecast(model, task.frames, ahead, task.mask, settings).frames[:, :, places].cpu().numpy())
    return np.concatenate(parts)
