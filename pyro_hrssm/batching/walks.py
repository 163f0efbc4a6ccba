"""Walks along the frames as custom operators, each with its backward pass written out.

Autograd would record every kernel of every frame and run several kernels for each in the backward pass. PyTorch's
compiler sees an operator as one node, and would otherwise unroll thousands. Second derivatives are not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ENTRIES_IN_CACHE = 2**16
"""Numbers that a loop works on at once: a quarter MiB of float32; a processor's own cache holds several such blocks."""


def _operator(schema: str, like: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Turn a function of tensors into an operator.

    Arguments:
        schema: types of the operator's arguments and results, as PyTorch writes them.
        like: gives tensors with the shapes and strides of the results, without computing the results.
    """

    def register(function: Callable[..., Any]) -> Any:
        name = f"pyro_hrssm::{function.__name__.strip('_')}"
        operator = torch.library.custom_op(name, function, mutates_args=(), schema=schema)
        operator.register_fake(like)
        return operator

    return register


def _differentiable(
    operator: Any,
    backward: Callable[[Any, Tensor], tuple[Tensor | None, ...]],
    save: Callable[[tuple[Any, ...], Any], tuple[Tensor | None, ...]],
) -> None:
    """Give an operator its backward pass.

    Arguments:
        backward: the gradients of all arguments, from the autograd context and the gradient of the first result.
        save: picks, from arguments and results, the tensors that the context keeps.
    """

    def set_up(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)  # no zeros for results without a gradient
        ctx.arguments = len(inputs)
        ctx.save_for_backward(*save(inputs, output))

    def gradients(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None,) * ctx.arguments if gradient is None else backward(ctx, gradient)

    operator.register_autograd(gradients, setup_context=set_up)


# Values kept until they are replaced


def carried(before: Tensor, new: Tensor, updates: Tensor) -> Tensor:
    """`z_t = u_t · new_t + (1 - u_t) · z_{t-1}`, exact at 0 and 1.

    Arguments:
        before: [B, Z], z one frame before the first.
        new: [T, B, Z].
        updates: [T, B] factors u; gradients reach them.
    Returns [T, B, Z].
    """
    walked: Tensor = _carry(before, new, updates.unsqueeze(-1))
    return walked


@_operator("(Tensor before, Tensor new, Tensor updates) -> Tensor", lambda before, new, updates: _plain_like(new))
def _carry(before: Tensor, new: Tensor, updates: Tensor) -> Tensor:
    values = _plain_like(new)
    value = before
    for fresh, update, place in zip(new.unbind(0), updates.unbind(0), values.unbind(0), strict=True):
        value = torch.lerp(value, fresh, update, out=place)
    return values


@_operator(
    "(Tensor gradient, Tensor before, Tensor new, Tensor updates, Tensor values) -> (Tensor, Tensor, Tensor)",
    lambda gradient, before, new, updates, values: (_plain_like(before), _plain_like(new), _plain_like(updates)),
)
def _carry_backward(
    gradient: Tensor, before: Tensor, new: Tensor, updates: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_values, d_new = _plain_like(new), _plain_like(new)
    later = torch.zeros_like(before, memory_format=torch.contiguous_format)
    each = list(zip(gradient, updates, d_values, d_new, strict=True))
    for given, update, d_value, d_fresh in reversed(each):
        torch.add(given, later, out=d_value)
        later = d_value - torch.mul(d_value, update, out=d_fresh)
    kept = torch.cat([before.unsqueeze(0), values[:-1]])
    return later, d_new, ((new - kept) * d_values).sum(-1, keepdim=True)


_differentiable(
    _carry,
    lambda ctx, gradient: _carry_backward(gradient, *ctx.saved_tensors),
    lambda inputs, values: (*inputs, values),
)


# Gated recurrent units


def gru_walk(
    projected: Tensor,
    start: Tensor,
    keep: Tensor | None,
    share: Tensor | None,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Walk D gated recurrent units side by side.

        h_t = share_t · GRU(x_t, keep_t · h_{t-1}) + (1 - share_t) · other_t

    Arguments:
        projected: [T, D, B, 3H] projections of the inputs, all biases included except the candidate's recurrent one.
        start: [D, B, H].
        keep, share: [T, D, B, 1], or None for 1; gradients reach them.
        other: [T, D, B, H], or None for h_{t-1}.
        weight: [D, H, 3H].
        bias: [D, 1, H] the candidate's recurrent bias.
    Returns [T, D, B, H].
    """
    beliefs: Tensor = _gru(projected, start, keep, share, other, weight, bias)[0]
    return beliefs


def _gru_like(projected: Tensor, start: Tensor, keep: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    frames, count, size, width = *projected.shape[:3], start.shape[-1]
    return (
        projected.new_empty(frames, count, size, width),
        projected.new_empty(frames, 4, count, size, width),
        projected.new_empty(0 if keep is None else frames, count, size, width),
    )


@_operator(
    "(Tensor projected, Tensor start, Tensor? keep, Tensor? share, Tensor? other, Tensor weight, Tensor bias)"
    " -> (Tensor, Tensor, Tensor)",
    _gru_like,
)
def _gru(
    projected: Tensor,
    start: Tensor,
    keep: Tensor | None,
    share: Tensor | None,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Beliefs; reset gate, update gate, candidate and the product in it [T, 4, D, B, H]; `keep_t · h_{t-1}`."""
    beliefs, gates, kept = _gru_like(projected, start, keep)
    width = start.shape[-1]
    products = torch.empty_like(projected[0])
    for_reset, for_update, for_candidate = products.split(width, -1)
    belief = start
    for t, (x, gate) in enumerate(zip(projected.unbind(0), gates.unbind(0), strict=True)):
        reset, update, candidate, h = gate.unbind(0)
        previous = belief if keep is None else torch.mul(belief, keep[t], out=kept[t])
        torch.bmm(previous, weight, out=products)
        products[..., : 2 * width].add_(x[..., : 2 * width])
        torch.sigmoid(for_reset, out=reset)
        torch.sigmoid(for_update, out=update)
        torch.add(for_candidate, bias, out=h)
        torch.addcmul(x[..., 2 * width :], reset, h, out=candidate).tanh_()
        if share is None:
            belief = torch.lerp(candidate, previous, update, out=beliefs[t])
        else:
            stepped = torch.lerp(candidate, previous, update)
            belief = torch.lerp(belief if other is None else other[t], stepped, share[t], out=beliefs[t])
    return beliefs, gates, kept


def _gru_backward_like(
    gradient: Tensor, start: Tensor, keep: Tensor | None, share: Tensor | None, other: Tensor | None, weight: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    frames, count, size, width = gradient.shape
    return (
        gradient.new_empty(count, frames, size, 3 * width).transpose(0, 1),
        _plain_like(start),
        *(gradient.new_empty(0) if value is None else _plain_like(value) for value in (keep, share, other)),
        gradient.new_empty(count, width, 3 * width),
        gradient.new_empty(count, 1, width),
    )


@_operator(
    "(Tensor gradient, Tensor start, Tensor? keep, Tensor? share, Tensor? other, Tensor weight, Tensor beliefs,"
    " Tensor gates, Tensor kept) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gru_backward_like,
)
def _gru_backward(
    gradient: Tensor,
    start: Tensor,
    keep: Tensor | None,
    share: Tensor | None,
    other: Tensor | None,
    weight: Tensor,
    beliefs: Tensor,
    gates: Tensor,
    kept: Tensor,
) -> tuple[Tensor, ...]:
    """The gradient of every argument of the walk; an empty one for arguments that were None.

    One product at the end gives the gradient of the weights from all frames. The factors of the gradients do not depend
    on the gradients, so that they are computed for several frames at once, before the walk back over these frames.
    """
    frames, count, size, width = beliefs.shape
    before = torch.cat([start.unsqueeze(0), beliefs[:-1]])
    kept = before if keep is None else kept
    transposed = weight.transpose(1, 2)
    d_beliefs, d_kept, for_candidate = (torch.empty_like(beliefs) for _ in range(3))
    d_products = beliefs.new_empty(count, frames, size, 3 * width)
    carried = torch.zeros_like(start, memory_format=torch.contiguous_format)
    for part in _from_the_last(frames, count * size * width):
        mixed = None if share is None else share[part]
        through = _gate_factors(kept[part], gates[part], mixed, d_products[:, part], for_candidate[part])
        if mixed is not None and other is None and keep is None:
            through = through + (1 - mixed)
        by_gate = d_products[:, part].unflatten(-1, (3, width))
        for t in reversed(range(part.start, part.stop)):
            here = t - part.start
            d_belief = torch.add(gradient[t], carried, out=d_beliefs[t])
            by_gate[:, here].mul_(d_belief.unsqueeze(-2))
            carried = torch.baddbmm(d_belief * through[here], d_products[:, t], transposed, out=d_kept[t])
            if keep is not None:
                carried = carried * keep[t]
                if share is not None and other is None:  # the mixed-in h_{t-1} was not reset
                    carried = torch.addcmul(carried + d_belief, d_belief, share[t], value=-1)
    d_keep, d_share, d_other = (beliefs.new_empty(0) for _ in range(3))
    if keep is not None:
        d_keep = (d_kept * before).sum(-1, keepdim=True)
    if share is not None:
        stepped = torch.lerp(gates[:, 2], kept, gates[:, 1])
        d_share = ((stepped - (before if other is None else other)) * d_beliefs).sum(-1, keepdim=True)
        if other is not None:
            d_other = torch.addcmul(d_beliefs, d_beliefs, share, value=-1)
    over_frames = d_products.flatten(1, 2)
    d_weight = kept.transpose(0, 1).reshape(count, frames * size, width).transpose(1, 2) @ over_frames
    d_bias = over_frames[..., 2 * width :].sum(1, keepdim=True)
    # The inputs' projection has the same gradient except for the candidate, whose recurrent part the reset gate scales.
    d_projected = d_products.transpose(0, 1)
    torch.mul(d_beliefs, for_candidate, out=d_projected[..., 2 * width :])
    return d_projected, carried.clone(), d_keep, d_share, d_other, d_weight, d_bias


def _gru_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    d_projected, d_start, *optional, d_weight, d_bias = _gru_backward(gradient, *ctx.saved_tensors)
    given = ctx.saved_tensors[1:4]
    mixed = (None if value is None else found for value, found in zip(given, optional, strict=True))
    return d_projected, d_start, *mixed, d_weight, d_bias


_differentiable(_gru, _gru_gradients, lambda inputs, output: (*inputs[1:6], *output))


def _from_the_last(frames: int, entries: int) -> Iterator[slice]:
    """Slices of frames, from the last frame back, that fit a processor's cache; each frame has `entries` numbers."""
    at_once = max(1, ENTRIES_IN_CACHE // entries)
    for stop in range(frames, 0, -at_once):
        yield slice(max(0, stop - at_once), stop)


def _gate_factors(kept: Tensor, gates: Tensor, share: Tensor | None, products: Tensor, for_candidate: Tensor) -> Tensor:
    """The factors that turn the gradients of n beliefs h_t into the gradients of the quantities h_t is computed from.

    Fills in the factors for the products with the kept belief, `products` [D, n, B, 3H], and for the candidate's part
    of the input's projection, `for_candidate` [n, D, B, H]. Returns the factor [n, D, B, H] for the direct path from
    the kept belief, apart from those products.
    """
    reset, update, candidate, recurrent_candidate = gates.unbind(1)
    for_reset, for_update, after_reset = products.transpose(0, 1).split(kept.shape[-1], -1)
    through, fresh = update, 1 - update
    if share is not None:
        through, fresh = through * share, fresh * share
    # `addcmul` computes x - a·a·x from x and a·x with one kernel and no temporary.
    torch.addcmul(fresh, candidate * fresh, candidate, value=-1, out=for_candidate)
    torch.mul(for_candidate, reset, out=after_reset)
    torch.mul((kept - candidate).mul_(update), fresh, out=for_update)
    torch.mul(torch.addcmul(recurrent_candidate, recurrent_candidate, reset, value=-1), after_reset, out=for_reset)
    return through


# Messages over paths of boundaries


def walk_messages(
    logits: Tensor,
    message: Tensor,
    opened: Tensor,
    stayed: Tensor,
    none: Tensor | None,
    some: Tensor | None,
    acts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The conditioned log odds [n, G, B] at n frames, and the message [G, B] before the first one.

    Arguments:
        message: [G, B] the message after the last frame; zeros at a sequence's end.
        logits, opened, stayed, none, some, acts: as in :func:`path_messages`, of n frames.
    """
    frames, size = logits.shape
    log_odds = logits.new_empty(frames, len(opened), size)
    log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    for t in reversed(range(frames)):
        yes = log_yes[t] + message.index_select(0, opened)
        no = log_no[t] + message.index_select(0, stayed)
        torch.sub(yes, no, out=log_odds[t])
        message = torch.logaddexp(yes, no)
        if none is not None and some is not None:
            message = torch.where(none[t], no, torch.where(some[t], yes, message))
        if acts is not None:
            message = message * acts[t]
    return log_odds, message


@_operator(
    "(Tensor logits, Tensor opened, Tensor stayed, Tensor? none, Tensor? some, Tensor? acts) -> Tensor",
    lambda logits, opened, *_: logits.new_empty(len(logits), len(opened), logits.shape[1]),
)
def path_messages(
    logits: Tensor,
    opened: Tensor,
    stayed: Tensor,
    none: Tensor | None,
    some: Tensor | None,
    acts: Tensor | None,
) -> Tensor:
    """The log odds of :meth:`pyro_hrssm.model.paths.BoundaryChain.conditioned`, [T-1, G, B].

    Arguments:
        logits: [T-1, B].
        opened, stayed: [G] the state after a boundary and after no boundary.
        none, some: [T-1, G, 1] bool, where the limits leave one term; None for no limits.
        acts: [T-1, B] bool; None for everywhere.
    """
    message = logits.new_zeros(len(opened), logits.shape[1])
    return walk_messages(logits, message, opened, stayed, none, some, acts)[0]


@_operator(
    "(Tensor gradient, Tensor logits, Tensor opened, Tensor stayed, Tensor? none, Tensor? some, Tensor? acts,"
    " Tensor log_odds) -> Tensor",
    lambda gradient, logits, *_: _plain_like(logits),
)
def _path_messages_backward(
    gradient: Tensor,
    logits: Tensor,
    opened: Tensor,
    stayed: Tensor,
    none: Tensor | None,
    some: Tensor | None,
    acts: Tensor | None,
    log_odds: Tensor,
) -> Tensor:
    yes_share = torch.sigmoid(log_odds)
    if none is not None and some is not None:
        yes_share = yes_share.masked_fill(none, 0).masked_fill(some, 1)
    d_messages, d_yes = torch.zeros_like(log_odds), torch.empty_like(log_odds)
    add = _adding_to(opened, stayed, gradient)
    for t in range(len(logits)):
        if acts is not None:
            d_messages[t] *= acts[t]
        torch.addcmul(gradient[t], d_messages[t], yes_share[t], out=d_yes[t])
        if t + 1 < len(logits):
            add(d_messages[t + 1], d_yes[t], d_messages[t] - d_yes[t])
    return (d_yes.sum(1) - torch.sigmoid(logits) * d_messages.sum(1)).contiguous()


def _adding_to(opened: Tensor, stayed: Tensor, like: Tensor) -> Callable[[Tensor, Tensor, Tensor], object]:
    """A function `(total, yes, no)` that adds to the rows `opened` of a total the rows of `yes`, and so on.

    It adds in the same order at every call, which `index_add_` does not on a GPU.
    """
    if not like.is_cuda:
        return lambda total, yes, no: total.index_add_(0, opened, yes).index_add_(0, stayed, no)
    return _product_adding_to(opened, stayed, like)


def _product_adding_to(opened: Tensor, stayed: Tensor, like: Tensor) -> Callable[[Tensor, Tensor, Tensor], object]:
    """The function of :func:`_adding_to` as one product with zeros and ones."""
    rows = torch.arange(len(opened), device=like.device).unsqueeze(1)
    reached = torch.cat([opened == rows, stayed == rows], 1).to(like.dtype)
    return lambda total, yes, no: total.addmm_(reached, torch.cat([yes, no]))


_differentiable(
    path_messages,
    lambda ctx, gradient: (_path_messages_backward(gradient, *ctx.saved_tensors), *[None] * 5),
    lambda inputs, log_odds: (*inputs, log_odds),
)


@_operator(
    "(Tensor opens, Tensor opened, Tensor stayed, Tensor position) -> Tensor",
    lambda opens, opened, stayed, position: position.new_empty(len(opens), len(position)),
)
def follow(opens: Tensor, opened: Tensor, stayed: Tensor, position: Tensor) -> Tensor:
    """The states of paths on the grid before each of n decisions, [n, B].

    Arguments:
        opens: [n, G, B] bool, the decision at every state.
        opened, stayed: [G] the state after a boundary and after no boundary.
        position: [B] the state before the first decision.
    """
    positions = []
    opened, stayed = opened.unsqueeze(1), stayed.unsqueeze(1)
    for opens_here in opens.unbind(0):
        positions.append(position)
        position = torch.where(opens_here, opened, stayed).gather(0, position.unsqueeze(0)).squeeze(0)
    return torch.stack(positions)


def _plain_like(value: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of the same shape."""
    return torch.empty_like(value, memory_format=torch.contiguous_format)
