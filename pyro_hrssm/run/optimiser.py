"""The optimiser that steps all parameters together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_hrssm import checkpoint
from pyro_hrssm.config import TrainingConfig
from pyro_hrssm.errors import InputError
from pyro_hrssm.run.diagnosis import AgreedError
from pyro_hrssm.run.parallel import ALONE, Processes
from pyro_hrssm.run.schedules import learning_rate


class JointAdam(PyroOptim):
    """Adam for `SVI` over all parameters of a module at once, with one global-norm clip and one schedule.

    Pyro's own wrappers hold one optimiser per parameter and clip every parameter's gradient separately.

    Arguments:
        module: the module whose parameters are stepped.
        config: learning rates, clip.
        processes: the run's processes, which all take the same step on the gradient of their joined batch.
    """

    def __init__(self, module: nn.Module, config: TrainingConfig, processes: Processes = ALONE) -> None:
        self.names = [name for name, _ in module.named_parameters()]
        self.parameters = list(module.parameters())
        self.config = config
        self.processes = processes
        self.steps = 0
        self.batch_size = 1
        self.gradient_norm = torch.zeros(())
        self.adam = torch.optim.Adam(self.parameters, lr=config.learning_rate, fused=True)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """One step on the gradients of the summed loss; raises `FloatingPointError` if one is not finite."""
        self.clip()
        if not torch.isfinite(self.gradient_norm):
            raise AgreedError("gradient")
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(self.config, self.steps)
        self.move()
        self.steps += 1

    def clip(self) -> None:
        """Clip the gradients, those of all processes together, and set `gradient_norm`, which may not be finite."""
        # A parameter without a gradient gets one of 0, so that every checkpoint holds moments of every parameter.
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.processes.size > 1:
            self._add_up_gradients()
        # The loss is a sum over sequences, and the clip is per sequence. Adam itself is invariant to this factor.
        limit = self.config.clip_norm * self.batch_size
        self.gradient_norm = nn.utils.clip_grad_norm_(self.parameters, limit) / self.batch_size

    def move(self) -> None:
        """Move the parameters along their gradients, and remove the gradients."""
        self.adam.step()
        # Gradients are removed, not zeroed as `SVI` would: the next backward pass then writes instead of adding.
        self.adam.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def on_device(self, rate: Tensor, halted: Tensor) -> Iterator[None]:
        """A context in which Adam waits for no number on the host, so that its step can be part of a CUDA graph.

        Arguments:
            rate: [] the step size.
            halted: [] float, 1 where the step must leave parameters and moments as they are.
        """
        adam: Any = self.adam
        adam.found_inf = halted
        groups = [dict(group) for group in adam.param_groups]
        for group in adam.param_groups:
            group.update(lr=rate, capturable=rate.is_cuda)
        try:
            yield
        finally:
            del adam.found_inf
            for group, before in zip(adam.param_groups, groups, strict=True):
                group.update(lr=before["lr"], capturable=before["capturable"])

    def _add_up_gradients(self) -> None:
        """Set every process's gradient to that of the joined batch: a sum, since the loss is a sum over sequences."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        # Checked before the sum, which would spread a NaN to processes whose own sites are all finite.
        if self.processes.largest(int(not torch.isfinite(joined).all())):
            raise AgreedError("gradient")
        parts = self.processes.add_up(joined).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def tensors(self) -> dict[str, Tensor]:
        """Adam's moments by parameter name, for a checkpoint."""
        state = self.adam.state_dict()["state"]
        return {f"{self.names[i]}.{key}": value for i, values in state.items() for key, value in values.items()}

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Set Adam's moments from the result of :meth:`tensors`, after `steps` steps."""
        places = {name: index for index, name in enumerate(self.names)}
        state: dict[int, dict[str, Tensor]] = {}
        for full, value in tensors.items():
            name, _, key = full.rpartition(".")
            if name not in places:
                raise InputError(f"checkpoint: the optimiser knows no parameter {name!r}")
            if key == "max_exp_avg_sq":
                raise InputError(f"checkpoint: {full} is of AMSGrad, which is gone: the run cannot be resumed")
            state.setdefault(places[name], {})[key] = value
        if steps > 0:
            checkpoint.check_tensors("checkpoint: the optimiser's moments are of another model", tensors, self._like())
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})
        self.steps = steps

    def _like(self) -> dict[str, Tensor]:
        """Tensors with the names and shapes of :meth:`tensors` after a step."""
        like = {f"{name}.step": torch.zeros(()) for name in self.names}
        pairs = zip(self.names, self.parameters, strict=True)
        return like | {f"{name}.{key}": parameter for name, parameter in pairs for key in ("exp_avg", "exp_avg_sq")}
