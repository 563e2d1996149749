"""A critic with a torso of its own that Adam trains: what the Gauss-Newton one is compared with.

Wu et al. 2017 (section 5.3) compare the two on continuous control: K-FAC on both networks, or on the policy's alone.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from acktr.agents.losses import Values, explained_variance, value_loss
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.agents.updates import add_up_gradients, load_optimizer_state, optimizer_state, scheduled
from acktr.agents.value_scale import ValueScale


class AdamCritic:
    """Makes one step of Adam after another on the same loss as K-FAC's critic.

    Args:
        policy: the whole network, whose value has a torso of its own.
        settings: critic_lr, lr_schedule and value_coef.

    Attributes:
        skipped: steps whose gradient was not finite and that were not made, 0-d.
    """

    def __init__(self, policy: ActorCritic, settings: Settings) -> None:
        assert policy.value_torso is not None
        self.policy = policy
        self.settings = settings
        modules = (policy.value_torso, policy.value_head)
        self._parameters = [own for module in modules for own in module.parameters() if own.requires_grad]
        self.optimizer = torch.optim.Adam(self._parameters, lr=settings.critic_lr, fused=True)
        self.skipped = torch.zeros((), device=self._parameters[0].device)

    def step(self, batch: Batch, scale: ValueScale, *, progress: float) -> dict[str, Tensor]:
        """Learn from one whole batch.

        Args:
            batch: the rollout.
            scale: of the values.
            progress: share of the run that is over, 0 to 1.

        Returns:
            value_loss and explained_variance as before the step, 0-d.
        """
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = scheduled(settings.critic_lr, settings.lr_schedule, progress)
        with record_function("acktr::forward"), batch.replaying(slice(None)):
            values = self.policy.values(batch.observations)
        loss = value_loss([Values(rows=slice(None), values=values)], batch)
        self.optimizer.zero_grad()
        with record_function("acktr::loss_backward"):
            torch.autograd.backward(settings.value_coef * loss / scale.of_loss)
        figures = add_up_gradients(self._parameters, {"value_loss": loss.detach()}, batch.part)
        with record_function("acktr::apply"):
            self._apply()
        figures["explained_variance"] = explained_variance(values.detach(), batch.returns, batch.weights, batch.part)
        return figures

    def _apply(self) -> None:
        gradients = [own.grad for own in self._parameters if own.grad is not None]
        usable = torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        self.skipped += 1 - usable.to(self.skipped)
        # what torch.amp.GradScaler sets, too: the fused step leaves parameters, moments and their age where it is 1
        self.optimizer.found_inf = 1 - usable.to(self.skipped)  # type: ignore[attr-defined]
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Adam's state and the count of skipped steps."""
        return {"optimizer": optimizer_state(self.optimizer), "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.skipped = state["skipped"].to(self.skipped.device, copy=True)
