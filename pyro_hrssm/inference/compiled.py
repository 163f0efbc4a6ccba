"""The training objective as one compiled program: Pyro's handlers run once, while it is exported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.objectives import Measured, Objective, finite

Program = Callable[..., tuple[Tensor, Measured]]


OLDEST = (2, 14)
"""The oldest version of torch with which compiling was tried and worked; 2.4 exports no module of this kind."""


def _version() -> tuple[int, ...]:
    major, minor, *_ = torch.__version__.split(".")
    return int(major), int(minor)


class CompiledObjective(Objective):
    """An objective whose loss is exported and compiled once for the shapes of its arguments, and then only called.

    The densities are those of the given objective, whose own loss over the same `model` and `guide` is exported.
    Random numbers come from the compiler's generator, seeded by torch's.

    Arguments:
        objective: the objective whose loss is compiled.
        module: the module whose parameters `model` and `guide` use.
        backend: PyTorch's name of the compiler.
    """

    def __init__(self, objective: Objective, module: nn.Module, backend: str = "inductor") -> None:
        super().__init__()
        self._objective = objective
        self._module = module
        self._backend = backend
        self._programs: dict[Any, Program] = {}

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss, its gradient added to the parameters' `grad`; raises `FloatingPointError` if it is not finite.

        Raises :class:`InputError` where nothing can be compiled.
        """
        arguments = _tensors(*args, **kwargs)
        shapes = (None if value is None else (value.shape, value.dtype) for value in arguments)
        key = (self._objective.learns_boundaries, *shapes)
        if key not in self._programs:
            self._programs[key] = self._compile(model, guide, arguments)
        loss, self._measured = self._programs[key](*arguments)
        loss.backward()
        return finite(loss.item())

    def _compile(self, model: Any, guide: Any, arguments: tuple[Tensor | None, ...]) -> Program:
        if _version() < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise InputError(f"compile needs torch {oldest} or newer, found {torch.__version__}")
        # This logger warns wherever there is a CUDA toolkit without a GPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        exported = _Exported(self._objective, self._module, model, guide)
        # Neither Pyro's store nor `SVI` may see the stand-ins for parameters with which the program is exported.
        with pyro.get_param_store().scope(), poutine.block(), _Unregistered(), pyro.validation_enabled(False):
            program = torch.export.export(exported, arguments, strict=False).module()
        return cast(Program, _or_input_error(torch.compile(program, dynamic=False, backend=self._backend)))

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The objective's loss, not compiled."""
        return float(self._objective.loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The objective's differentiable loss, not compiled."""
        return self._objective.differentiable_loss(model, guide, *args, **kwargs)

    @property
    def learns_boundaries(self) -> bool:
        """The objective's own flag."""
        return self._objective.learns_boundaries

    @learns_boundaries.setter
    def learns_boundaries(self, value: bool) -> None:
        self._objective.learns_boundaries = value

    def measured(self) -> Measured:
        """The measurements of the last loss."""
        return self._measured

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return self._objective._get_trace(model, guide, args, kwargs)


class _Unregistered(Messenger):
    """Leaves parameters out of Pyro's store, which turns gradients off and on for each of them.

    `torch.export` cuts a program at every such change, in a time that grows with the square of the pieces.
    """

    def _pyro_param(self, msg: Any) -> None:
        given = msg["args"][-1]
        if isinstance(given, Tensor):
            msg["value"], msg["done"] = given, True


class _Exported(nn.Module):
    """The objective as a function of tensors."""

    def __init__(self, objective: Objective, module: nn.Module, model: Any, guide: Any) -> None:
        super().__init__()
        self.objective, self.module, self.programs = objective, module, (model, guide)

    def forward(
        self,
        frames: Tensor,
        mask: Tensor | None,
        temperature: Tensor,
        kl_weight: Tensor | None,
        state_weight: Tensor | None,
        switch_gradient: Tensor | None,
    ) -> tuple[Tensor, Measured]:
        weights = {"kl_weight": kl_weight, "state_weight": state_weight}
        given = {name: 1.0 if weight is None else weight for name, weight in weights.items()}
        given["switch_gradient"] = 0.0 if switch_gradient is None else switch_gradient
        loss = self.objective.differentiable_loss(*self.programs, frames, mask, temperature=temperature, **given)
        return loss, self.objective.measured()


def _tensors(
    frames: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float,
    kl_weight: float = 1.0,
    state_weight: float = 1.0,
    switch_gradient: float = 0.0,
) -> tuple[Tensor | None, ...]:
    """A step's arguments, with the schedules' values as tensors, so that one program serves all values."""
    weights = (None if weight == 1 else frames.new_tensor(weight) for weight in (kl_weight, state_weight))
    share = None if switch_gradient == 0 else frames.new_tensor(switch_gradient)
    return frames, mask, frames.new_tensor(temperature), *weights, share


def _or_input_error(program: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        try:
            return program(*args)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error).split("\n\n")[0]  # advice on how to debug the compiler follows
            raise InputError(f"compile needs a C++ compiler that works here: {reason}") from error

    return call
