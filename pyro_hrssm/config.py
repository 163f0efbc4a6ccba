"""The settings of a run: frozen, documented, validated dataclasses.

Each field is a flag of the command line, and its docstring is the flag's help. docs/OPTIONS.md names the case in which
one wants each flag, and the fields that have none. A wrong value raises :class:`InputError`, whose message is one line:
the value expected and the value found.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pyro_hrssm.errors import found, one_line, require

LARGEST_COUNT = 2**31 - 1
"""The most steps, seeds, frames or segments: a larger number is a slip, and would overflow some arithmetic."""

LARGEST_SIZE = 2**16
"""The most units or channels: a belief of that size has 48 GiB of recurrent weights."""

LARGEST_DEPTH = 1000
"""The most layers: a boundary then sees 1,000 frames to each side."""

MOST_WORKERS = 1000
"""The most processes that read ahead: a larger number is a slip."""


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name} must be positive and finite, found {found(value)}")


def _require_count(config: Any, least: int, *names: str, most: int = LARGEST_COUNT) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None:
            require(value >= least, f"{name} must be at least {least}, found {found(value)}")
            require(value <= most, f"{name} must be at most {most}, found {found(value)}")


def _fits_convolutions(frame_shape: tuple[int, ...], least: int) -> bool:
    return len(frame_shape) == 3 and all(side % 8 == 0 and side >= least for side in frame_shape[:2])


@dataclass(frozen=True)
class HRSSMConfig:
    """The model and its guide: sizes, likelihood, segment limits and the form of q."""

    model: Literal["hrssm", "rssm"] = "hrssm"
    """Hierarchical, or the flat recurrent state space model of the same sizes, a baseline without segments."""
    frame_shape: tuple[int, ...] = (28,)
    """Shape of one frame: `(pixels,)` for vectors, `(height, width, channels)` for images. Training takes it from
    the data."""
    networks: Literal["auto", "mlp", "conv"] = "auto"
    """Frame encoder and decoder: dense, or convolutional for images whose sides are multiples of 8; `auto` takes
    convolutions for such images from 16 pixels on."""
    hidden: int = 128
    """Size H of the deterministic beliefs and width of the dense layers."""
    abstract_size: int = 8
    """Size Z of the abstract state, one per segment."""
    observation_size: int = 8
    """Size S of the observation state, one per frame."""
    channels: int = 32
    """Channels of the first convolution (`conv` only); deeper ones double it."""
    likelihood: Literal["auto", "bernoulli", "normal"] = "auto"
    """Emission of a frame's entries: Bernoulli for values in [0, 1], or Normal with the standard deviation
    `noise_scale`; `auto` takes the one that suits the data set in training, and Bernoulli elsewhere."""
    noise_scale: float | Literal["learned"] = "learned"
    """Standard deviation of the Normal emission: `learned`, one for each entry of a frame, or one fixed number for all,
    in the units of the scaled frames."""
    max_segments: int | None = 5
    """Limit N_max: the most segments in a window; `None` for no limit."""
    max_length: int | None = 10
    """Limit l_max: the most frames in a segment; `None` for no limit."""
    min_length: int = 1
    """The fewest frames in a segment that another one follows; a sequence's end may cut its last segment shorter."""
    entry_flags: bool = False
    """Whether the encoder sees, beside the value of each entry of a frame, whether it is observed, or its weight.
    Training takes it from the data: true where some frames lack entries, or entries have weights."""
    window: int | None = None
    """Frames, the context excluded, to which N_max applies; a longer roll-out obeys the limits of length alone.
    Training takes the length of its sequences; `None` applies N_max for ever."""
    context: int = 0
    """Leading frames that are given, not modelled: the model computes its first belief from them. 0: it learns one."""
    boundary_posterior: Literal["conditioned", "factorised", "limited"] = "conditioned"
    """q(M | X): `conditioned` exactly on the paths that the limits allow; `factorised` as in the paper; `limited`,
    which applies the limits greedily as boundaries are drawn."""
    smoothing: bool = True
    """Whether q(s_t) sees the rest of its segment too; without it only the segment's past, as in the paper."""
    boundary_layers: int = 3
    """Convolution layers of q(M | X) over time, 3 frames wide each."""
    min_scale: float = 1e-2
    """Smallest standard deviation of any latent Normal."""

    def __post_init__(self) -> None:
        _check_types(self)
        _require_count(self, 1, "hidden", "abstract_size", "observation_size", "channels", most=LARGEST_SIZE)
        _require_count(self, 1, "boundary_layers", most=LARGEST_DEPTH)
        _require_count(self, 0, "context")
        _require_count(self, 1, "max_segments", "max_length", "min_length", "window")
        require(
            self.max_length is None or self.min_length <= self.max_length,
            f"min_length must be at most max_length {found(self.max_length)}, found {found(self.min_length)}",
        )
        _require_positive(self, "min_scale")
        if self.noise_scale != "learned":
            _require_positive(self, "noise_scale")
        require(
            len(self.frame_shape) >= 1 and all(size >= 1 for size in self.frame_shape),
            f"frame_shape must hold positive sizes, found {found(self.frame_shape)}",
        )
        require(
            math.prod(self.frame_shape) <= LARGEST_COUNT,
            f"frame_shape must hold at most {LARGEST_COUNT} entries, found {found(self.frame_shape)}",
        )
        if self.networks == "conv":
            require(
                _fits_convolutions(self.frame_shape, 8),
                "networks conv needs frames of shape (height, width, channels) with sides that are multiples of 8, "
                f"found {found(self.frame_shape)}",
            )

    @property
    def has_segments(self) -> bool:
        """Whether the model is hierarchical, with boundaries and an abstract state."""
        return self.model == "hrssm"

    @property
    def convolutional(self) -> bool:
        """Whether frames pass through convolutions."""
        return self.networks == "conv" or (self.networks == "auto" and _fits_convolutions(self.frame_shape, 16))


@dataclass(frozen=True)
class LeaveOneOut:
    """The objective with hard boundaries, whose q(M) learns by score function, and how its boundaries are steered."""

    particles: int = 2
    """Draws per sequence and step that are judged against each other; at least 2."""
    boundary_cost: float = 0.0
    """Nats by which each boundary makes a path worse in the eyes of q(M): for data whose bound asks for more segments
    than there are, or for none in particular. Reported bounds leave it out."""
    boundary_rate: float | None = None
    """Boundaries per frame that q(M) draws on average: the boundary cost moves until it does. `None` leaves the cost as
    it is. For data whose bound hardly says how many segments there are."""
    boundary_warmup_steps: int = 0
    """Steps during which the layers of q(M) learn nothing, while all others do: for data on which a segment is worth
    its cost only once the networks know how frames go on."""
    credit: float = 0.8
    """How fast the say of a frame in whether a boundary is right falls with its distance from it, per frame; 1: all
    frames of the sequence have the same say, and the gradient of q(M) is unbiased, but the noisier the longer sequences
    are."""
    exploration: float = 0.0
    """Share of the steps at whose start boundaries are drawn at random rates, in all sequences at first and in none at
    the end of this share: the networks so learn to use segments before q(M) learns where they pay."""
    boundary_price: float | None = None
    """Nats that a boundary must gain to stay until `prior_from`, in place of what p(m) asks for. p(m) imitates q(M) and
    would close boundaries that are not yet of use one after the other. `None`: p(m) has its say from the first step."""
    prior_from: float = 0.8
    """Share of the steps from which p(m) has its say, once boundaries are of use."""

    def __post_init__(self) -> None:
        _check_types(self)
        require(self.particles >= 2, f"leave_one_out needs at least 2 particles, found {found(self.particles)}")
        _require_count(self, 2, "particles")
        _require_count(self, 0, "boundary_warmup_steps")
        for name in ("credit", "exploration", "prior_from"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must lie between 0 and 1, found {found(value)}")
        price = self.boundary_price
        require(price is None or price >= 0, f"boundary_price must be at least 0, found {found(price)}")
        require(self.boundary_cost >= 0, f"boundary_cost must be at least 0, found {found(self.boundary_cost)}")
        rate = self.boundary_rate
        require(rate is None or 0 < rate < 1, f"boundary_rate must lie between 0 and 1, found {found(rate)}")

    @property
    def steering(self) -> list[str]:
        """Names of the settings that steer boundaries, away from their defaults."""
        names = ("exploration", "boundary_price", "boundary_cost", "boundary_rate", "boundary_warmup_steps")
        return [name for name in names if getattr(self, name) != getattr(LeaveOneOut, name)]


@dataclass(frozen=True)
class TrainingConfig:
    """The SVI loop: length, optimiser, schedules, what is logged and kept."""

    steps: int = 1500
    """Gradient steps."""
    restarts: int = 1
    """Seeds, from `seed` on, that are trained briefly; the one of the best bound goes on to the last step. The bound is
    that of training sequences, so that the choice favours no held-out score."""
    restart_steps: int = 200
    """Steps of each brief training."""
    batch_size: int = 128
    """Sequences per step, all processes together where `torchrun` started several."""
    seed: int = 1
    """Seed of the parameters, the batches and the noise."""
    elbo: Literal["trace", "mean_field"] | LeaveOneOut = "trace"
    """`Trace_ELBO` on relaxed boundaries, as in the paper; `TraceMeanField_ELBO` on them, with analytic KL of the
    Normal sites; or `leave_one_out`, the true bound with hard boundaries, whose q(M) learns by score function."""
    learning_rate: float = 4e-3
    """Adam's highest step size."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0."""
    final_learning_rate: float = 1e-4
    """Step size at the last step, reached along a half cosine."""
    clip_norm: float = 10.0
    """Largest global norm of the gradient of the loss per sequence."""
    temperature_start: float = 1.0
    """Temperature of the relaxed boundaries at the first step."""
    temperature_end: float = 0.6
    """Temperature at the last step, reached along a straight line."""
    switch_warmup_steps: int | None = None
    """Steps over which the terms of z come to carry the gradient of the relaxed boundary that switches them, so that
    q(M) learns that a segment which is not opened saves the cost of its z: 0 from the first step on, `None` never. Hard
    boundaries have no such gradient, and `mean_field` leaves it out."""
    kl_warmup_steps: int = 0
    """Steps over which the weight of the latent terms rises to 1; 0 for the plain bound throughout."""
    state_weight: float = 1.0
    """Weight of the terms of s, the state of a frame. Above 1, the model learns to say with z, once a segment, as much
    as it can. Evaluation reports the plain bound; the log's `s` is weighted."""
    final_state_weight: float | None = None
    """Weight of the terms of s that is reached from 70 to 90 % of the steps; `None` keeps `state_weight`."""
    log_every: int = 10
    """Steps between lines of `metrics.jsonl`."""
    evaluate_every: int = 500
    """Steps between evaluations on held-out sequences and pictures; 0 for the last step alone."""
    checkpoint_every: int = 250
    """Steps between checkpoints; the last step is always kept."""
    keep_checkpoints: int = 3
    """Checkpoints kept."""
    keep_best: bool = True
    """Also save and keep the checkpoint of the best held-out bound, which commands on a run take with `--best`, in
    place of the last one. Evaluations are compared once the objective stays the same: after `kl_warmup_steps`,
    `switch_warmup_steps`, `boundary_warmup_steps`, `exploration`, the change at `prior_from`, and that of the state
    weight; in the preset `segments` after 90 % of the steps."""
    patience: int | None = None
    """Evaluations in a row without a better held-out bound after which training stops early; those are compared that
    `keep_best` compares. The learning rate has then not reached its last value. `None`: never."""
    particles: int = 20
    """Particles K of the importance-weighted bound at the end."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the networks' products in training: `bf16` computes them in bfloat16, for GPUs that are fast at it.
    Parameters, optimiser, gates, draws, densities and all evaluation stay in float32."""
    compile: bool = False
    """Compile the training step: the first step then takes about a minute, or a quarter of that where an earlier run
    left a cache, and the others are faster. Needs a C++ compiler; not for `mean_field`."""
    graph: bool = True
    """On a GPU, capture the training step once as a CUDA graph and replay it, so that no step waits for Python. Without
    it the run stops at a NaN at once, and not within `log_every` steps. Has no effect on a CPU."""
    workers: int = 0
    """Processes that read ahead of the training, two batches each; 0 to read in the training process."""

    def __post_init__(self) -> None:
        named: Any = self.elbo  # the name alone means the defaults: a convenience that the type does not show
        if isinstance(named, str) and named == "leave_one_out":
            object.__setattr__(self, "elbo", LeaveOneOut())
        _check_types(self)
        _require_count(self, 1, "steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "particles")
        _require_count(self, 1, "restarts", "restart_steps", "patience")
        _require_count(self, 0, "warmup_steps", "kl_warmup_steps", "switch_warmup_steps", "evaluate_every", "seed")
        _require_count(self, 0, "workers", most=MOST_WORKERS)
        _require_positive(self, "learning_rate", "clip_norm", "temperature_start", "temperature_end", "state_weight")
        if self.final_state_weight is not None:
            _require_positive(self, "final_state_weight")
        require(
            self.patience is None or self.evaluate_every > 0,
            "patience needs evaluations, evaluate_every of at least 1, found 0",
        )
        # The compiled program holds what steers boundaries as constants.
        for name in ("boundary_rate", "boundary_price", "exploration"):
            value, default = getattr(self.leave_one_out, name), getattr(LeaveOneOut, name)
            off = value == default or not self.compile
            require(off, f"{name} needs compile off, found {name} {found(value)} with it")
        require(
            not (self.compile and self.elbo == "mean_field"),
            "compile needs elbo trace or leave_one_out, found mean_field",
        )
        require(
            0 <= self.final_learning_rate <= self.learning_rate,
            f"final_learning_rate must lie between 0 and learning_rate {found(self.learning_rate)}, "
            f"found {found(self.final_learning_rate)}",
        )

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """The settings of :class:`LeaveOneOut`; its defaults, which steer nothing, under another objective."""
        return self.elbo if isinstance(self.elbo, LeaveOneOut) else LeaveOneOut()


@dataclass(frozen=True)
class DataConfig:
    """Where the sequences come from and how they are split."""

    data: str = "mnist5k"
    """A data set's name (`mnist5k`, `mnist`, `balls`, `colours`, `levels`) or the path of your own arrays."""
    data_root: Path = Path("data")
    """Folder for downloads."""
    held_out: float = 0.1
    """Share of the sequences held out for evaluation, where the data set has no split of its own."""
    split_seed: int = 0
    """Seed of that split; the same for every run, so that runs compare."""
    scaling: Literal["auto", "none", "unit", "standard"] = "auto"
    """What is done to frames: `none`, nothing; `unit`, they are mapped to [0, 1], all entries alike, unless they lie
    there already (those of training sequences, and held-out ones too where the likelihood is `bernoulli`, which cannot
    score others); `standard`, each entry of the last axis gets mean 0 and deviation 1 on the training sequences. `auto`
    takes `unit` for booleans, unsigned integers and integers of 0 and 1, and `standard` for all others."""
    boundaries_mark: Literal["ends", "starts"] = "ends"
    """What the `boundaries` of your own arrays mark: the last frame of a segment, or the first one."""
    window_length: int | Literal["auto"] | None = "auto"
    """Frames of the windows into which recordings of your own are cut; shorter recordings stay whole. `auto` cuts where
    one has more than 1,000 frames, or where there is a single one, into windows of 200 frames, or of a tenth of the
    longest recording if that is less; `None` cuts nothing. `segment` reads recordings whole whatever was cut."""
    window_overlap: float = 0.5
    """Share of a window that the next one repeats, among those to train on; held-out windows never overlap."""

    def __post_init__(self) -> None:
        _check_types(self)
        require(0 < self.held_out < 1, f"held_out must lie between 0 and 1, found {found(self.held_out)}")
        require(0 <= self.window_overlap < 1, f"window_overlap must lie in [0, 1), found {found(self.window_overlap)}")
        if self.window_length != "auto":
            _require_count(self, 2, "window_length")
        require(self.data != "", "data must name a data set or a path, found ''")


Config = TypeVar("Config", HRSSMConfig, TrainingConfig, LeaveOneOut, DataConfig)


def to_dict(config: HRSSMConfig | TrainingConfig | LeaveOneOut | DataConfig) -> dict[str, Any]:
    """Plain values of a configuration, ready for JSON; the settings of :class:`LeaveOneOut` stand beside the others."""
    values = dataclasses.asdict(config)
    if isinstance(config, TrainingConfig):
        values |= {flat_name(name): value for name, value in vars(config.leave_one_out).items()}
        values["elbo"] = "leave_one_out" if isinstance(config.elbo, LeaveOneOut) else config.elbo
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def from_dict(kind: type[Config], values: Any) -> Config:
    """Rebuild a configuration from :func:`to_dict`'s values; unknown or missing keys raise :class:`InputError`."""
    require(isinstance(values, dict), f"{kind.__name__} must be a table of values, found {type(values).__name__}")
    values = _BEFORE.get(kind, {}) | values
    if kind is TrainingConfig:
        values = _nested(values)
    names = {field.name for field in dataclasses.fields(kind)}
    unknown, missing = [name for name in values if name not in names], sorted(names - set(values))
    require(not unknown, f"{kind.__name__} has no field {one_line(', '.join(map(found, unknown)))}")
    require(not missing, f"{kind.__name__} lacks {', '.join(map(repr, missing))}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _from_json(value, hints[name]) for name, value in values.items()})


_BEFORE: dict[Any, dict[str, Any]] = {
    HRSSMConfig: {"min_length": 1, "smoothing": False, "entry_flags": False},
    TrainingConfig: {
        "compile": False,
        "graph": False,
        "keep_best": False,
        "patience": None,
        "precision": "float32",
        "state_weight": 1.0,
        "final_state_weight": None,
        "switch_warmup_steps": None,
        "workers": 0,
    },
    DataConfig: {"scaling": "auto", "boundaries_mark": "ends", "window_length": None, "window_overlap": 0.5},
}
"""What runs did before these settings existed: the values that records of old runs lack."""


def flat_name(name: str) -> str:
    """The name of a setting of :class:`LeaveOneOut` as a flag and in records, where it stands beside all others."""
    return "elbo_particles" if name == "particles" else name


def objective(named: Any, steering: dict[str, Any], default: LeaveOneOut) -> Any:
    """The objective of this name, with settings of :class:`LeaveOneOut` by flat name, which it alone can have.

    Arguments:
        default: the settings that stand where `steering` names none.

    Raises:
        InputError: where the objective is another one, and one of them is not the default.
    """
    values = {name: steering.get(flat_name(name), value) for name, value in vars(default).items()}
    if named == "leave_one_out":
        return LeaveOneOut(**values)
    for name, value in values.items():
        require(value == getattr(default, name), f"{flat_name(name)} needs elbo leave_one_out, found {named}")
    return named


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Training settings as fields of :class:`TrainingConfig`, from a record of any age.

    Old records lack fields that were added later, which take their defaults, and hold `amsgrad` and `validate`, which
    are gone. An optimiser's state of AMSGrad is refused where it is restored.
    """
    before = vars(LeaveOneOut(credit=1.0))
    steered: dict[str, Any] = {name: values.pop(flat_name(name), default) for name, default in before.items()}
    if isinstance(values.get("elbo"), str) and values["elbo"] == "leave_one_out":
        values["elbo"] = LeaveOneOut(**steered)
    return {name: value for name, value in values.items() if name not in ("amsgrad", "validate")}


def _from_json(value: Any, hint: Any) -> Any:
    """JSON knows neither tuples nor paths."""
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    return value


def _check_types(config: Any) -> None:
    """Refuse values of another type than annotated: a dataclass read from a file would take any."""
    hints = typing.get_type_hints(type(config))
    for name, hint in hints.items():
        value = getattr(config, name)
        require(_fits(value, hint), f"{name} must be {_describe(hint)}, found {found(value)}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        return is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def is_finite(value: Any) -> bool:
    """Whether this is a number that fits a float and is neither NaN nor infinite."""
    # Compared, not math.isfinite: that raises on whole numbers too large for a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _describe(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("None" if choice is type(None) else _describe(choice) for choice in arguments)
    if typing.get_origin(hint) is tuple:
        return "a tuple of whole numbers"
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(hint) or f"a {hint.__name__}"
