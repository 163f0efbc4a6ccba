"""The experiments of docs/RESULTS.md: data, the models trained on it, and how they are scored."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Variant:
    """One model, trained by one objective."""

    title: str
    flags: str = ""
    """Further arguments of `pyro-hrssm train`."""


HRSSM = Variant("HRSSM")
RELAXED = Variant("HRSSM, relaxed boundaries", "--elbo trace --switch-warmup-steps 0")
FLAT = Variant("RSSM", "--model rssm")


@dataclass(frozen=True)
class Picture:
    """A picture of the first seed's run that a document shows."""

    file: str
    """Its file in the run's folder, drawn by training, by `segment`, or by `predict`."""
    caption: str
    predict: str | None = None
    """Arguments of `pyro-hrssm predict`, whose arrays lie beside the picture; None where the run has drawn it."""
    variant: str = "hrssm"


@dataclass(frozen=True)
class Experiment:
    """One data set, the models that are trained on it, and how they are scored."""

    title: str
    about: str
    data: str | None
    """Arguments of `pyro-hrssm data`, whose file is named after the experiment; None where `file` names other data."""
    train: str
    """Arguments of `pyro-hrssm train` for every variant."""
    given: int
    """Number of frames that forecasts start from."""
    variants: dict[str, Variant] = field(default_factory=lambda: {"hrssm": HRSSM, "trace": RELAXED, "rssm": FLAT})
    shown: tuple[str, ...] = ("hrssm",)
    """The models that stand in the summary of all experiments."""
    file: str | None = None
    """A data set's name, or an archive that must lie in the folder of the runs."""
    particles: int = 20
    """Number of particles of the importance-weighted bound."""
    margin: int | None = None
    """Number of frames that a boundary may be off, as in the source of the data."""
    types: str | None = None
    """Arguments of `pyro-hrssm segment` that give segments types; None for data without true types."""
    whole: bool = False
    """Whether recordings are scored from end to end, rather than in windows."""
    on_all: bool = False
    """Whether all sequences are scored, those trained on included: where hardly any could be held out."""
    pictures: tuple[Picture, ...] = ()

    def source(self, name: str) -> str:
        """The value of `--data`."""
        return self.file or f"{name}.npz"

    def scoring(self, name: str) -> str:
        """Arguments of `pyro-hrssm evaluate`."""
        margin = "" if self.margin is None else f" --margin {self.margin}"
        data = f"--data {self.source(name)} " if self.on_all else ""
        whole = " --whole" if self.whole else ""
        return f"{data}--particles {self.particles} --given {self.given} --horizons 1 5 10{margin}{whole}"


_STARTS = Picture("figures/segments.png", "Segment starts of held-out sequences, found and true.")
_REBUILT = Picture(
    "figures/reconstructions.png",
    "Held-out sequences (above) and their reconstructions (below); each bracket is one segment that the model opened.",
)
_IMAGES = "--preset video --channels 16 --hidden 64 --learning-rate 2e-3 --steps 1500"
_HARD = "--elbo leave_one_out --particles 2"

EXPERIMENTS = {
    "rows": Experiment(
        "Digit rows",
        "The 5,000 digits of the default data, row by row: 28 frames of 28 pixels. No true segments are known.",
        None,
        "",
        14,
        {
            "hrssm": Variant("HRSSM, limits of the preset"),
            "rssm": FLAT,
            "leave_one_out": Variant(
                "HRSSM, hard boundaries, no limits", "--elbo leave_one_out --max-segments None --max-length None"
            ),
        },
        shown=("hrssm", "leave_one_out"),
        file="mnist5k",
        pictures=(
            _REBUILT,
            Picture("figures/boundaries.png", "Probability of a boundary after each row: prior and posterior."),
        ),
    ),
    "levels": Experiment(
        "Levels",
        "Four sensors, one of them mostly noise, hold one of six levels for 4 to 14 frames; 60 frames.",
        "levels --num 1000",
        "--steps 2000",
        30,
        types="--types 6",
        pictures=(
            Picture(
                "seen_found.png",
                "Held-out sequences of four sensors, one of them mostly noise; each bracket is a segment found.",
                "--mode reconstruct --num-sequences 4",
            ),
            _STARTS,
            Picture("segments_types.png", "Types: how often each occurs, how long it lasts, what follows it."),
            Picture(
                "forecast_quantiles.png",
                "Forecasts from 30 frames: medians and central 80 % intervals, with what came.",
                "--mode forecast --context 30 --quantiles 0.1 0.5 0.9 --num-sequences 3",
            ),
        ),
    ),
    "levels_long": Experiment(
        "Levels, 200 frames",
        "The same in longer sequences.",
        "levels --num 1000 --num-frames 200",
        "--steps 600",
        100,
        {"hrssm": HRSSM, "rssm": FLAT},
        types="--types 6",
        pictures=(_STARTS,),
    ),
    "colours_clear": Experiment(
        "Colours, no noise",
        "Images of one colour; segments of 2 to 6 frames, the next colour always another one: every boundary can be "
        "seen.",
        "colours --num 4000 --noise 0",
        "--steps 2000",
        10,
        types="--types auto",
        pictures=(
            _REBUILT,
            Picture("segments_examples.png", "Types of segments, with examples of each."),
        ),
    ),
    "colours_noisy": Experiment(
        "Colours, noise 0.5",
        "The same in noise of half the distance between two values of a channel.",
        "colours --num 4000 --noise 0.5",
        "--steps 1500",
        10,
        types="--types auto",
        pictures=(_STARTS,),
    ),
    "colours_repeat": Experiment(
        "Colours that may repeat, segments of 3 frames",
        "Three in ten boundaries change no pixel.",
        "colours --num 4000 --noise 0 --min-length 3 --max-length 3 --repeat 0.3",
        "--steps 2000",
        10,
        {"hrssm": HRSSM, "rssm": FLAT},
        types="--types auto",
    ),
    "balls": Experiment(
        "Bouncing balls",
        "Two balls in a box, 32 by 32 pixels; one changes its colour where it hits a wall. 5 frames of context, 20 "
        "modelled.",
        "balls --num 4000",
        _IMAGES,
        15,
        {
            "hrssm": Variant("HRSSM, relaxed boundaries"),
            "leave_one_out": Variant(
                "HRSSM, hard boundaries, the rate named",
                f"{_HARD} --max-segments 8 --max-length None --boundary-warmup-steps 500 --boundary-rate 0.18 "
                "--state-weight 4",
            ),
            "rssm": FLAT,
        },
        shown=("hrssm", "leave_one_out"),
        particles=10,
        margin=1,
        pictures=(replace(_REBUILT, variant="leave_one_out"), replace(_STARTS, variant="leave_one_out")),
    ),
    "maze": Experiment(
        "3D maze",
        "Walks through corridors, 32 by 32 pixels; a segment ends where the walker starts or stops to turn, or passes "
        "a junction. 5 frames of context, 20 modelled.",
        "maze --num 600",
        _IMAGES,
        15,
        {
            "hrssm": Variant("HRSSM, relaxed boundaries"),
            "leave_one_out": Variant("HRSSM, hard boundaries", _HARD),
            "rssm": FLAT,
        },
        shown=("hrssm", "leave_one_out"),
        particles=10,
        margin=1,
        pictures=(
            _REBUILT,
            _STARTS,
            Picture(
                "forecast_sequences.png",
                "Walks imagined frame by frame, from 10 given frames.",
                "--mode forecast --context 10 --num-sequences 4 --num-samples 1",
            ),
            Picture(
                "jump_sequences.png",
                "The same walks imagined segment by segment: one frame for each.",
                "--mode jump --context 10 --horizon 5 --num-sequences 4 --num-samples 1",
            ),
        ),
    ),
    "bounce": Experiment(
        "Bounce",
        "One ball in one dimension flies between two walls, 100 frames (Ansari et al. 2021); a segment is a flight in "
        "one direction, of which no mean tells.",
        "bounce --num 1000",
        "--steps 1000",
        50,
        {
            "hrssm": HRSSM,
            "small": Variant(
                "HRSSM, tiny networks", "--hidden 4 --observation-size 2 --abstract-size 2 --state-weight 4"
            ),
            "rate": Variant("HRSSM, the rate named", "--boundary-rate 0.03 --min-length 5 --state-weight 8"),
            "rssm": FLAT,
        },
        margin=5,
        types="--types 2",
        pictures=(_STARTS,),
    ),
    "modes": Experiment(
        "Modes",
        "A rotating system seen through one of three modes for 5 to 20 frames; 200 frames (after Ansari et al. 2021).",
        "modes --num 1000",
        "--window-length 60 --steps 1500",
        100,
        margin=5,
        types="--types 3 --types-of frames",
        whole=True,
        pictures=(_STARTS, Picture("segments_examples.png", "Types of segments, with examples of each.")),
    ),
    "mocap6": Experiment(
        "Motion capture",
        "Six recordings of exercises, 205 to 446 frames at 10 Hz of 12 channels; others annotated 12 exercises "
        "(Fox et al. 2014). `benchmarks/mocap6.py` says where the file is to be had.",
        None,
        "--window-length 150 --min-length 20 --steps 300",
        100,
        {"hrssm": Variant("HRSSM", "--state-weight 4"), "trace": RELAXED, "rssm": FLAT},
        file="mocap6.npz",
        margin=10,
        types="--types 12",
        whole=True,
        on_all=True,
    ),
}
