"""The cost and the worth of imagination, for a trained run on digit rows.

The cost is the time of `jump` per imagined segment over the time of `forecast` for the frames of one segment; medians,
measured in turn in one process. The worth is the log likelihood of held-out bottom halves under forecasts from their
top halves (importance-weighted, and as the plain mean over forecast samples, a loose lower bound), beside the training
set's mean image and the prior::

    python -m benchmarks.imagination runs/rows
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.train_step import alternate
from pyro_hrssm import HRSSM, DataConfig, checkpoint, data
from pyro_hrssm.config import from_dict
from pyro_hrssm.data import Scaling, Splits
from pyro_hrssm.inference.bounds import forecast_log_likelihood, log_likelihood
from pyro_hrssm.inference.evaluation import evaluate
from pyro_hrssm.inference.prediction import Settings, forecast, jump, sample

ROWS, GIVEN = 28, 14


def cost(model: HRSSM, splits: Splits, steps: int) -> dict[str, float]:
    """Seconds per sample and imagined segment, by jumps and by frames; 100 samples of 8 sequences in one pass."""
    frames = splits.held_out.batch(torch.arange(8)).frames[:, :GIVEN]
    settings = Settings(num_samples=100)
    batches = [(splits.held_out.batch(torch.arange(500)).frames, None)]
    length = evaluate(model, batches, particles=1).mean_segment_length
    segments = 4
    rolled = round(segments * length)
    # Both include the inference on the given frames, which is timed separately and subtracted.
    jumps, rollout, inference = alternate(
        steps,
        lambda: jump(model, frames, segments, settings=settings),
        lambda: forecast(model, frames, rolled, settings=settings),
        lambda: forecast(model, frames, 0, settings=settings),
    )
    return {
        "ratio": (jumps - inference) / (rollout - inference),
        "one_over_mean_segment_length": 1 / length,
        "jump_seconds": jumps,
        "forecast_seconds": rollout,
        "inference_seconds": inference,
    }


def under_samples(frames: Tensor, means: Tensor) -> Tensor:
    """Log of the mean over samples of p(frames | means), Bernoulli: [B, …] and [samples, B, …] -> [B] nats."""
    kept = means.clamp(1e-6, 1 - 1e-6)
    scores = torch.xlogy(frames, kept) + torch.xlogy(1 - frames, 1 - kept)
    return torch.logsumexp(scores.flatten(2).sum(2), 0) - math.log(len(means))


def _under_forecasts(model: HRSSM, digits: Tensor, samples: int) -> Tensor:
    means = forecast(model, digits[:, :GIVEN], ROWS - GIVEN, settings=Settings(num_samples=samples)).frames
    return under_samples(digits[:, GIVEN:], means[:, :, GIVEN:])


def _under_prior(model: HRSSM, digits: Tensor, samples: int) -> Tensor:
    """The prior's density of the bottom half alone, with the top half hidden and integrated out."""
    mask = torch.arange(ROWS).expand(len(digits), ROWS) >= GIVEN
    return log_likelihood(model, digits, mask, samples)


def worth(model: HRSSM, splits: Splits, samples: int) -> dict[str, float]:
    """Nats per held-out bottom half: forecasts from the top half, the mean image, and the prior."""
    digits = splits.held_out.batch(torch.arange(len(splits.held_out))).frames
    mean_image = splits.train.batch(torch.arange(len(splits.train))).frames.mean(0)[GIVEN:]
    drawn = sample(model, samples, ROWS).frames[0, :, GIVEN:]
    scores: dict[str, list[Tensor]] = {}
    for part in tqdm(digits.split(50), desc="worth", unit="batch"):
        found = {
            "forecast": forecast_log_likelihood(model, part, GIVEN, particles=samples),
            "forecast_samples": _under_forecasts(model, part, samples),
            "mean_image": under_samples(part[:, GIVEN:], mean_image.expand(1, len(part), -1, -1)),
            "prior": _under_prior(model, part, samples),
            "prior_samples": under_samples(part[:, GIVEN:], drawn.unsqueeze(1)),
        }
        for name, values in found.items():
            scores.setdefault(name, []).append(values)
    nats = {name: torch.cat(values) for name, values in scores.items()}
    gain = nats["forecast"] - nats["mean_image"]
    return {
        **{f"{name}_nats": values.mean().item() for name, values in nats.items()},
        "gain_over_mean_image_standard_error": (gain.std() / len(gain) ** 0.5).item(),
        "samples": samples,
        "sequences": len(digits),
    }


def main() -> None:
    """Print cost and worth as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=20, help="rounds counted (default 20)")
    parser.add_argument("--samples", type=int, default=100, help="samples per digit (default 100)")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    model, record = HRSSM.load(arguments.run), checkpoint.load(arguments.run).record
    if model.config.likelihood != "bernoulli" or model.config.frame_shape != (28,):
        raise SystemExit("imagination: needs a Bernoulli run on digit rows, such as make train leaves")
    splits = data.load(from_dict(DataConfig, record["data"]), Scaling.from_dict(record["scaling"]))
    results = {"worth": worth(model, splits, arguments.samples), "cost": cost(model, splits, arguments.steps)}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
