"""A2C, the first-order baseline: RMSprop or Adam on the same objective (Mnih et al. 2016, synchronous)."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.profiler import record_function

from acktr.agents.losses import Policies, Values, explained_variance, policy_losses, value_loss
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.agents.updates import UpdateReport, add_up_gradients, load_optimizer_state, optimizer_state, scheduled


class A2CUpdater:
    """One gradient step per batch, with the global norm of the gradient clipped.

    Args:
        policy: the network to train.
        settings: lr, lr_schedule, a2c_optimizer, rms_alpha, rms_eps, max_grad_norm and the objective's coefficients.
    """

    def __init__(self, policy: ActorCritic, settings: Settings) -> None:
        self.policy = policy
        self.settings = settings
        parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self._parameters = parameters
        self.optimizer: torch.optim.Optimizer
        if settings.a2c_optimizer == "adam":
            self.optimizer = torch.optim.Adam(parameters, lr=settings.lr, eps=settings.rms_eps)
        else:
            self.optimizer = torch.optim.RMSprop(
                parameters, lr=settings.lr, alpha=settings.rms_alpha, eps=settings.rms_eps
            )
        self._skipped = torch.zeros((), device=parameters[0].device)

    def update(self, batch: Batch, *, progress: float) -> UpdateReport:
        """Learn from one batch; one with a non-finite gradient counts as a gradient of 0, and is counted."""
        settings = self.settings
        lr = scheduled(settings.lr, settings.lr_schedule, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with record_function("acktr::forward"), batch.replaying(slice(None)):
            distribution, values = self.policy(batch.observations)
        policies = [Policies(rows=slice(None), distribution=distribution)]
        policy, entropy = policy_losses(policies, batch, normalize_advantages=settings.normalize_advantages)
        value = value_loss([Values(rows=slice(None), values=values)], batch)
        self.optimizer.zero_grad()
        entropy_coef = scheduled(settings.entropy_coef, settings.entropy_schedule, progress)
        with record_function("acktr::loss_backward"):
            torch.autograd.backward(policy + settings.value_coef * value - entropy_coef * entropy)
        losses = {"policy_loss": policy.detach(), "value_loss": value.detach(), "entropy": entropy.detach()}
        figures = add_up_gradients(self._parameters, losses, batch.part)
        with record_function("acktr::apply"):
            self._step()
        figures["explained_variance"] = explained_variance(values.detach(), batch.returns, batch.weights, batch.part)
        return UpdateReport(figures=figures)

    def _step(self) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        usable = torch.isfinite(norm)
        self._skipped += 1 - usable.to(self._skipped)
        shrink = (self.settings.max_grad_norm / (norm + 1e-6)).clamp(max=1)
        with torch.no_grad():
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad = torch.where(usable, parameter.grad * shrink, 0.0)
        self.optimizer.step()

    def exploring(self) -> contextlib.AbstractContextManager[None]:
        """Nothing but the sampling of actions."""
        return contextlib.nullcontext()

    def learning_rate(self) -> float:
        """The learning rate of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def counters(self) -> Mapping[str, int]:
        """Batches skipped; A2C has no inverses and searches for no step."""
        return {
            "decomposition_retries": 0,
            "stale_inverses": 0,
            "skipped_batches": int(self._skipped.item()),
            "rejected_steps": 0,
        }

    def conditions(self) -> Mapping[str, float]:
        """None: there are no factors."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the count of skipped batches."""
        return {"optimizer": optimizer_state(self.optimizer), "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        self._skipped = state["skipped"].to(self._skipped.device, copy=True)
