"""The densities of p and q, written a second time from the equations: one sequence, one frame, one path at a time.

The oracle shares only a model's parameters with the package: recurrences, resets, convolutions, limits and boundary
posteriors are spelled out here. A sequence is a list of frames [X…] with one `observed` flag each; frames past the last
observed one do not exist, and other unobserved frames are never read. Where entries are missing or weighted, a frame
has weights [X…] too, 0 for a missing entry. Site values are those of Pyro's sites: `m[t]` a logit while
`temperature > 0` and 0 or 1 at `temperature == 0`, `z[t]` [Z], `s[t]` [S].
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import pyro
import torch
from torch import Tensor, nn

from pyro_hrssm import HRSSM, HRSSMConfig
from pyro_hrssm.model.limits import Counts

EPSILON = 1e-3
"""Probability with which a boundary against the limits is scored."""

Densities = dict[str, Tensor]


def log_p(
    model: HRSSM,
    frames: Sequence[Tensor],
    observed: Sequence[bool],
    m: Sequence[Tensor],
    z: Sequence[Tensor],
    s: Sequence[Tensor],
    temperature: float,
    copied: bool = False,
    weights: Sequence[Tensor] | None = None,
) -> Densities:
    """Log density of each site of p for one sequence, without absent and, unless `copied`, without copied ones."""
    context, length = model.config.context, modelled_length(model, observed)
    densities: Densities = {}
    emission = torch.zeros((), dtype=_dtype(model))
    segments, frames_in_segment = 1, 1
    belief, latent = _first_belief(model, frames, observed, weights), torch.empty(0)
    observation_belief = torch.empty(0)
    for t in range(length):
        opens = t == 0 or is_boundary(m[t - 1], temperature)

        # The abstract level: the first belief, UPDATE, or COPY.
        if opens:
            if t > 0:
                belief = _gru(model.abstract.recurrence, latent, belief)
            latent = z[t]
        if opens or copied:
            densities[f"z_{t}"] = _normal(z[t], *_head(model.abstract.prior, belief))

        # The observation level: INIT or UPDATE.
        if opens:
            first, _, second, _ = model.observation.first
            inner = _elu(_linear(first, torch.cat([belief, latent])))
            observation_belief = torch.tanh(_linear(second, inner))
        else:
            inputs = torch.cat([s[t - 1], latent])
            observation_belief = _gru(model.observation.recurrence, inputs, observation_belief)
        densities[f"s_{t}"] = _normal(s[t], *_head(model.observation.prior, observation_belief))

        feature = _elu(_linear(model.emission.combine, torch.cat([observation_belief, s[t]])))
        if observed[context + t]:
            known = None if weights is None else weights[context + t]
            emission = emission + _emission(model, feature, frames[context + t], known)

        # The boundary after this frame.
        if t + 1 < length:
            logit = _linear(model.emission.boundary, feature)[0]
            verdict = forced(model.config, t, segments, frames_in_segment)
            densities[f"m_{t}"] = _boundary(m[t], logit if verdict is None else _doubt(verdict), temperature)
            if is_boundary(m[t], temperature):
                segments, frames_in_segment = segments + 1, 1
            else:
                frames_in_segment += 1
    densities["x"] = emission
    return densities


def log_q(
    model: HRSSM,
    frames: Sequence[Tensor],
    observed: Sequence[bool],
    m: Sequence[Tensor],
    z: Sequence[Tensor],
    s: Sequence[Tensor],
    temperature: float,
    copied: bool = False,
    weights: Sequence[Tensor] | None = None,
) -> Densities:
    """Log density of each site of q for one sequence, without absent and, unless `copied`, without copied ones."""
    config = model.config
    context, length = config.context, modelled_length(model, observed)
    path = tuple(is_boundary(value, temperature) for value in m[: max(0, length - 1)])
    encoded = _encodings(model, frames, observed, weights)[: context + length]
    densities: Densities = {}

    for t, logit in enumerate(_posterior_logits(model, encoded, path)):
        densities[f"m_{t}"] = _boundary(m[t], logit, temperature)

    opens = [t == 0 or path[t - 1] for t in range(length)]
    for t in range(length):
        start = max(frame for frame in range(t + 1) if opens[frame])
        end = next((frame for frame in range(t, length) if frame == length - 1 or opens[frame + 1]), length)
        future = _walk(model, 2, encoded[context + t : context + end + 1][::-1])
        if opens[t] or copied:
            past = _walk(model, 0, encoded[: context + t])
            densities[f"z_{t}"] = _normal(z[t], *_head(model.posterior.abstract, torch.cat([past, future])))
        segment = _walk(model, 1, encoded[context + start : context + t + 1])
        seen = torch.cat([segment, future, z[start]] if config.smoothing else [segment, z[start]])
        densities[f"s_{t}"] = _normal(s[t], *_head(model.posterior.observation, seen))
    return densities


# Boundaries


def is_boundary(value: Tensor, temperature: float) -> bool:
    """Whether a boundary site's value means 1: a positive logit, or 1 itself at temperature 0."""
    return bool(value > 0) if temperature > 0 else bool(value == 1)


def forced(config: HRSSMConfig, t: int, segments: int, frames_in_segment: int) -> bool | None:
    """The boundary after frame t that the prior's limits force at n_t and l_t; None if the boundary is free."""
    in_window = config.window is None or t + 1 < config.window
    if config.max_segments is not None and in_window and segments >= config.max_segments:
        return False
    if frames_in_segment < config.min_length:
        return False
    if config.max_length is not None and frames_in_segment >= config.max_length:
        return True
    return None


def verdicts(config: HRSSMConfig, path: Sequence[bool]) -> list[bool | None]:
    """The value that the limits force, or None, for each boundary along a path, given those before it."""
    answers = []
    segments, frames_in_segment = 1, 1
    for t, boundary in enumerate(path):
        answers.append(forced(config, t, segments, frames_in_segment))
        segments, frames_in_segment = (segments + 1, 1) if boundary else (segments, frames_in_segment + 1)
    return answers


def allowed(config: HRSSMConfig, path: Sequence[bool]) -> bool:
    """Whether a path of boundaries obeys the limits."""
    answers = verdicts(config, path)
    return all(answer is None or answer == boundary for answer, boundary in zip(answers, path, strict=True))


def counted(counts: Counts, opened: Tensor) -> Counts:
    """Counts of paths one frame later; `opened`: [B] bool, whether a path opens a segment there."""
    return Counts(counts.segments + opened, counts.length.masked_fill(opened, 0) + 1)


def paths(count: int) -> Iterator[tuple[bool, ...]]:
    """All paths of `count` boundaries."""
    return itertools.product((False, True), repeat=count)


def modelled_length(model: HRSSM, observed: Sequence[bool]) -> int:
    """Frames after the context and up to the last observed one."""
    return max([0, *(t + 1 - model.config.context for t, seen in enumerate(observed) if seen)])


def _doubt(verdict: bool) -> Tensor:
    probability = 1 - EPSILON if verdict else EPSILON
    return torch.tensor(math.log(probability / (1 - probability)), dtype=torch.float64)


def _posterior_logits(model: HRSSM, encoded: list[Tensor], path: tuple[bool, ...]) -> list[Tensor]:
    """Logits of q(m_t | m_<t, X) along a path."""
    config = model.config
    phi = _convolved(model, encoded)[config.context :][: len(path)]
    if config.boundary_posterior == "factorised":
        return phi
    answers = verdicts(config, path)
    if config.boundary_posterior == "limited":
        return [free if answer is None else _doubt(answer) for free, answer in zip(phi, answers, strict=True)]
    # The conditioned posterior is a joint over all allowed paths; every conditional is a ratio of sums.
    weights = {
        other: sum((nn.functional.logsigmoid(logit if bit else -logit) for bit, logit in zip(other, phi, strict=True)))
        for other in paths(len(path))
        if allowed(config, other)
    }
    logits = []
    for t, answer in enumerate(answers):
        if answer is not None:
            logits.append(_doubt(answer))
            continue
        alike = {other: weight for other, weight in weights.items() if other[:t] == path[:t]}
        yes, no = (
            torch.logsumexp(torch.stack([weight for other, weight in alike.items() if other[t] == bit]), 0)
            for bit in (True, False)
        )
        logits.append(yes - no)
    return logits


def _boundary(value: Tensor, logit: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        probability = torch.sigmoid(logit)
        return torch.log(probability if bool(value == 1) else torch.sigmoid(-logit))
    # value = (logit + noise) / temperature, with noise of density e^-u / (1 + e^-u)².
    noise = temperature * value - logit
    return math.log(temperature) + nn.functional.logsigmoid(noise) + nn.functional.logsigmoid(-noise)


# Densities and networks


def _dtype(model: HRSSM) -> torch.dtype:
    return model.emission.combine.weight.dtype


def _normal(value: Tensor, mean: Tensor, scale: Tensor | Sequence[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=value.dtype)
    for x, mu, sigma in zip(value, mean, scale, strict=True):
        total = total - 0.5 * ((x - mu) / sigma) ** 2 - torch.log(sigma) - 0.5 * math.log(2 * math.pi)
    return total


def _emission(model: HRSSM, feature: Tensor, frame: Tensor, weights: Tensor | None = None) -> Tensor:
    config = model.config
    kept = torch.ones(frame.numel()) if weights is None else weights.flatten()
    places = [place for place, weight in enumerate(kept.tolist()) if weight > 0]
    if config.networks == "conv":
        decoded = model.emission.decoder.layers(feature.unsqueeze(0))[0].permute(1, 2, 0).flatten()
    else:
        first, _, second = model.emission.decoder.layers
        decoded = _linear(second, _elu(_linear(first, feature)))
    if config.likelihood == "normal":
        if config.noise_scale == "learned":
            noise = 0.02 + torch.exp(model.emission.log_noise).flatten()
        else:
            noise = torch.full_like(decoded, config.noise_scale)
        variances = [noise[place] ** 2 / kept[place] for place in places]
        scales = [torch.sqrt(variance) for variance in variances]
        return _normal(frame.flatten()[places], decoded[places], scales)
    grey, decoded = frame.flatten()[places], decoded[places]
    return (grey * nn.functional.logsigmoid(decoded) + (1 - grey) * nn.functional.logsigmoid(-decoded)).sum()


def _encodings(
    model: HRSSM, frames: Sequence[Tensor], observed: Sequence[bool], weights: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Feature of each frame; a frame that is not observed has the feature zero, and a missing entry the value zero."""
    features = []
    for t, (frame, seen) in enumerate(zip(frames, observed, strict=True)):
        if not seen:
            features.append(torch.zeros(model.config.hidden, dtype=_dtype(model)))
            continue
        known = torch.ones_like(frame) if weights is None else weights[t].to(frame.dtype)
        frame = torch.where(known > 0, frame, torch.zeros_like(frame))
        if model.config.entry_flags:
            frame = torch.cat([frame, 2 * known / (known + 1)], -1)
        if model.config.networks == "conv":
            features.append(model.posterior.encoder.layers(frame.permute(2, 0, 1).unsqueeze(0))[0])
        else:
            first, _, second, _ = model.posterior.encoder.layers
            features.append(_elu(_linear(second, _elu(_linear(first, frame.flatten())))))
    return features


def _first_belief(
    model: HRSSM, frames: Sequence[Tensor], observed: Sequence[bool], weights: Sequence[Tensor] | None
) -> Tensor:
    context = model.config.context
    if context == 0:
        return model.abstract.first
    summary = _walk(model, 0, _encodings(model, frames, observed, weights)[:context])
    return torch.tanh(_linear(model.abstract.from_context, summary))


def _convolved(model: HRSSM, encoded: list[Tensor]) -> list[Tensor]:
    """φ of every frame: convolutions three frames wide that read zeros before the first frame and after the last."""
    values = encoded
    layers = [*model.posterior.boundary, model.posterior.boundary_logit]
    for index, layer in enumerate(layers):
        size = layer.product.in_features // 3
        outputs = []
        for t in range(len(values)):
            total = layer.product.bias
            for place, neighbour in enumerate((t - 1, t, t + 1)):
                if 0 <= neighbour < len(values):
                    total = total + layer.product.weight[:, place * size : (place + 1) * size] @ values[neighbour]
            outputs.append(total if index == len(layers) - 1 else _elu(total))
        values = outputs
    return [value[0] for value in values]


def _walk(model: HRSSM, member: int, inputs: Sequence[Tensor]) -> Tensor:
    """Last belief of one of q's recurrences over some frames, started at zero: 0 past, 1 segment, 2 its future."""
    recurrences = model.posterior.recurrences
    belief = torch.zeros(model.config.hidden, dtype=_dtype(model))
    for x in inputs:
        projected = _linear(recurrences.projections[member], x)
        recurrent = belief @ recurrences.weight[member] + recurrences.bias[member, 0]
        belief = _gated(projected, recurrent, belief)
    return belief


def _gru(cell: nn.Module, inputs: Tensor, belief: Tensor) -> Tensor:
    return _gated(_linear(cell.input, inputs), _linear(cell.recurrent, belief), belief)


def _gated(projected: Tensor, recurrent: Tensor, belief: Tensor) -> Tensor:
    """PyTorch's gated recurrent unit: the three thirds are reset gate, update gate and candidate."""
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = projected.chunk(3), recurrent.chunk(3)
    reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
    return (1 - update) * torch.tanh(new_x + reset * new_h) + update * belief


def _head(head: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    first, _, second = head.layers
    mean, raw = _linear(second, _elu(_linear(first, features))).chunk(2)
    return mean, torch.log1p(torch.exp(raw)) + head.min_scale


def _linear(layer: nn.Linear, inputs: Tensor) -> Tensor:
    return layer.weight @ inputs + layer.bias


def _elu(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, torch.expm1(values.clamp(max=0)))


# Inputs for the tests


def random_model(config: HRSSMConfig, seed: int = 0, spread: float = 0.5) -> HRSSM:
    """A double-precision model in which no parameter has a value that initialisation favours."""
    generator = torch.Generator().manual_seed(seed)
    model = HRSSM(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def site_values(trace: pyro.poutine.Trace) -> dict[str, Tensor]:
    """Values of the latent sites of a trace of the guide or the model."""
    return {
        name: site["value"].detach()
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and name[:2] in ("m_", "z_", "s_")
    }


def of_sequence(values: dict[str, Tensor], letter: str, row: int) -> list[Tensor]:
    """Values of the sites `letter_0`, `letter_1`, … for one sequence of the batch."""
    count = sum(name.startswith(f"{letter}_") for name in values)
    return [values[f"{letter}_{t}"][row] for t in range(count)]


def batch_densities(
    model: HRSSM,
    frames: Tensor,
    mask: Tensor | None,
    values: dict[str, Tensor],
    temperature: float,
    copied: bool = False,
) -> tuple[list[Densities], list[Densities]]:
    """:func:`log_p` and :func:`log_q` of every sequence of a batch [B, T, X…] with a mask [B, T] or [B, T, X…]."""
    rows: tuple[list[Densities], list[Densities]] = ([], [])
    for row in range(len(frames)):
        observed, weights = [True] * frames.shape[1], None
        if mask is not None and mask.dim() == 2:
            observed = mask[row].bool().tolist()
        elif mask is not None:
            weights = [frame.double() for frame in mask[row]]
            observed = [any(weight > 0 for weight in frame.flatten().tolist()) for frame in weights]
        m, z, s = (of_sequence(values, letter, row) for letter in "mzs")
        for densities, density in zip(rows, (log_p, log_q), strict=True):
            densities.append(density(model, list(frames[row]), observed, m, z, s, temperature, copied, weights))
    return rows
