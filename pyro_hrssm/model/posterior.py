"""The networks of q, which the guide applies to frames (paper, section 2). The frame axis comes first: [T, B, …]."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_hrssm.config import HRSSMConfig
from pyro_hrssm.model.masks import told
from pyro_hrssm.model.networks import ConvEncoder, DenseEncoder, GaussianHead, StackedGRU, TemporalConvolution, widened

_PAST, _SEGMENT_PAST, _SEGMENT_FUTURE = range(3)


class Summaries(NamedTuple):
    """Outputs of q's recurrences at each modelled frame, [T, B, H] each."""

    past: Tensor
    """ψ^fwd_{t-1}: all frames before t, context included."""
    segment_past: Tensor
    """φ^fwd_t: the segment's frames up to t."""
    segment_future: Tensor
    """ψ^bwd_t: the segment's frames from t on."""


class FrameEncoding(nn.Module):
    """The encoder of frames and the forward recurrence over them, from which every q and a first belief are computed.

    Arguments:
        config: the sizes.
        recurrences: number of recurrences side by side; the first is the forward one over all frames.
    """

    def __init__(self, config: HRSSMConfig, recurrences: int) -> None:
        super().__init__()
        hidden = config.hidden
        self.context = config.context
        self.entry_flags = config.entry_flags
        *sides, last = config.frame_shape
        shape = (*sides, 2 * last) if config.entry_flags else config.frame_shape
        self.encoder: nn.Module
        if config.convolutional:
            self.encoder = ConvEncoder(shape, hidden, config.channels)
        else:
            self.encoder = DenseEncoder(shape, hidden)
        self.recurrences = StackedGRU(recurrences, hidden, hidden)

    def encode(self, frames: Tensor, seen: Tensor | None, entries: Tensor | None = None) -> Tensor:
        """Features [T, B, H] of frames [T, B, X…]; zero where `seen` [T, B] is false, whatever the pixels.

        Where the configuration has `entry_flags`, the encoder is also told what is known of the `entries` [T, B, X…]:
        as much as of any, where they are None. Other encoders see that a missing entry is 0, and no more.
        """
        if self.entry_flags:
            flags = torch.ones_like(frames) if entries is None else told(entries, frames)
            frames = torch.cat([frames, flags], -1)
        encoded = self.encoder(frames)
        return encoded if seen is None else torch.where(seen.unsqueeze(-1), encoded, 0.0)

    def context_summary(self, encoded: Tensor) -> Tensor:
        """ψ^fwd after the context: [K, B, H] -> [B, H]."""
        keep = encoded.new_ones(encoded.shape[:2])
        return self.recurrences([encoded], [keep], slice(_PAST, _PAST + 1))[0][-1]


class Posterior(FrameEncoding):
    """q(M | X)'s logits, and the heads of q(z_t | M, X) and q(s_t | z_t, M, X)."""

    def __init__(self, config: HRSSMConfig) -> None:
        super().__init__(config, recurrences=3)
        hidden = config.hidden
        self.boundary = nn.ModuleList(TemporalConvolution(hidden, hidden) for _ in range(config.boundary_layers - 1))
        self.boundary_logit = TemporalConvolution(hidden, 1)
        self.abstract = GaussianHead(2 * hidden, hidden, config.abstract_size, config.min_scale)
        self.smoothing = config.smoothing
        seen = (2 if config.smoothing else 1) * hidden
        self.observation = GaussianHead(seen + config.abstract_size, hidden, config.observation_size, config.min_scale)
        if config.convolutional:
            self.abstract.start_sharp()
            self.observation.start_sharp()

    def boundary_logits(self, encoded: Tensor, valid: Tensor | None) -> Tensor:
        """φ: [T, B] log odds of a boundary after each modelled frame.

        Beyond a sequence's end (`valid` [T, B] false) every layer reads zeros, as beyond a batch's end.
        """
        return self.logits_along(encoded, valid)[self.context :]

    @property
    def boundary_reach(self) -> int:
        """Number of frames to each side on which a boundary's logit depends."""
        return len(self.boundary) + 1

    def logits_along(self, encoded: Tensor, valid: Tensor | None) -> Tensor:
        """The same for all frames given, context included."""
        features = encoded
        for layer in self.boundary:
            features = F.elu(layer(features))
            if valid is not None:
                features = features * valid.unsqueeze(-1)
        logits = widened(self.boundary_logit(features))
        return logits.squeeze(-1)

    def summaries(self, encoded: Tensor, boundaries: Tensor) -> Summaries:
        """Run the three recurrences: encoded [K + T, B, H], boundaries m_0 … m_{T-2} as [T-1, B] factors.

        Within segments, the forward recurrence starts afresh after a boundary and the backward recurrence at a
        boundary. Only the recurrence over all frames uses the context; the others' results there are dropped.
        """
        ends = encoded.new_zeros(1, *encoded.shape[1:2])
        context = ends.expand(self.context, -1)
        go_on = 1 - boundaries
        keep = [
            torch.ones_like(encoded[..., 0]),
            torch.cat([context, ends, go_on]),
            # The backward recurrence steps from frame t+1 to frame t, so that m_t decides whether it starts afresh.
            torch.cat([context, go_on, ends]).flip(0),
        ]
        past, segment_past, segment_future = self.recurrences([encoded, encoded, encoded.flip(0)], keep)
        before = torch.cat([torch.zeros_like(past[:1]), past[:-1]])
        start = self.context
        return Summaries(before[start:], segment_past[start:], segment_future.flip(0)[start:])

    def abstract_parameters(self, summaries: Summaries) -> tuple[Tensor, Tensor]:
        """Mean and scale of q(z_t | M, X), [T, B, Z] each."""
        return self.abstract(torch.cat([summaries.past, summaries.segment_future], -1))

    def segment_future_along(self, encoded: Tensor, go_on: Tensor, after: Tensor) -> Tensor:
        """ψ^bwd_t [n, B, H] of consecutive frames, from that of the frame after them, or zeros, [B, H].

        Arguments:
            go_on: [n, B] factors, 1 where the segment goes on after the frame.
        """
        members = slice(_SEGMENT_FUTURE, _SEGMENT_FUTURE + 1)
        return self.recurrences([encoded.flip(0)], [go_on.flip(0)], members, after.unsqueeze(0))[0].flip(0)

    def abstract_along(
        self, encoded: Tensor, go_on: Tensor, before: Tensor, after: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Mean and scale of q(z_t | M, X), [n, B, Z] each, of consecutive frames, and ψ^fwd [B, H] after them.

        Arguments:
            go_on, after: as in :meth:`segment_future_along`.
            before: [B, H] ψ^fwd before them; zeros before the first frame.
        """
        members = slice(_PAST, _SEGMENT_FUTURE + 1, _SEGMENT_FUTURE - _PAST)
        keep = [torch.ones_like(go_on), go_on.flip(0)]
        past, future = self.recurrences([encoded, encoded.flip(0)], keep, members, torch.stack([before, after]))
        past = torch.cat([before.unsqueeze(0), past])
        return self.abstract(torch.cat([past[:-1], future.flip(0)], -1)), past[-1]

    def observation_parameters(self, summaries: Summaries, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of q(s_t | z_t, M, X), [T, B, S] each, from z [T, B, Z].

        A departure from the paper: with `config.smoothing`, s_t is inferred from the whole segment, as its exact
        posterior would be, and not from the segment's frames up to t alone.
        """
        future = [summaries.segment_future] if self.smoothing else []
        return self.observation(torch.cat([summaries.segment_past, *future, latents], -1))


class FlatPosterior(FrameEncoding):
    """The head of the flat model's q(s_t | X)."""

    def __init__(self, config: HRSSMConfig) -> None:
        super().__init__(config, recurrences=2)
        self.observation = GaussianHead(2 * config.hidden, config.hidden, config.observation_size, config.min_scale)
        if config.convolutional:
            self.observation.start_sharp()

    def observation_parameters(self, encoded: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and scale of q(s_t | X), [T, B, S] each, from all frames up to t and all from t to the sequence's end.

        Arguments:
            encoded: [K + T, B, H], context first.
            valid: [K + T, B] bool, false past a sequence's end; None if none ends early.
        """
        on = torch.ones_like(encoded[..., 0])
        # The backward recurrence starts afresh at each sequence's own last frame.
        back = on if valid is None else torch.cat([valid[1:].to(on.dtype), torch.zeros_like(on[:1])])
        past, future = self.recurrences([encoded, encoded.flip(0)], [on, back.flip(0)])
        return self.observation(torch.cat([past, future.flip(0)], -1)[self.context :])
