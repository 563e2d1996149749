"""ACKTR: the natural-gradient update of a policy and a value (Wu et al. 2017, arXiv:1708.05144).

The batch goes through the network in two parts when `stat_fraction` is below 1: the rows that the curvature is taken
from, with K-FAC's capture on, and the rest. Together they make one loss and one backward pass, so the factors cost no
second forward pass, and the sampled backward runs over the first part only.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from acktr.agents.losses import Outputs, actor_critic_losses, explained_variance
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.agents.updates import UpdateReport, load_optimizer_state, optimizer_state, scheduled
from acktr.kfac import KFAC, EmpiricalFisher, Fisher, GaussNewton, Joint, Metric, mean_kl, weighted_mean


class ACKTRUpdater:
    """One K-FAC step per batch inside the trust region.

    Args:
        policy: the network to train.
        settings: everything under "optimizer" there, and the objective's coefficients.
        generator: draws for the sampled Fisher, on the policy's device.
    """

    def __init__(self, policy: ActorCritic, settings: Settings, generator: torch.Generator) -> None:
        self.policy = policy
        self.settings = settings
        self._generator = generator
        self.optimizer = KFAC(
            policy,
            lr=settings.lr,
            max_kl=settings.max_kl,
            momentum=settings.momentum,
            damping=settings.damping,
            damping_mode=settings.damping_mode,
            stat_decay=settings.stat_decay,
            stat_interval=settings.stat_interval,
            inverse_interval=settings.inverse_interval,
            bias=settings.bias,
            conv_factors=settings.conv_factors,
            compat=settings.compat,
        )
        self._updates = 0
        self._rotation = 0

    def update(self, batch: Batch, *, progress: float) -> UpdateReport:
        """Learn from one batch."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = scheduled(settings.lr, settings.lr_schedule, progress)
            # a radius of exactly 0 would be no trust region's; the last update of a falling schedule stays above it
            group["max_kl"] = max(scheduled(settings.max_kl, settings.kl_schedule, progress), 1e-12)
        with record_function("acktr::forward"):
            outputs = self._forward(batch)
        first = outputs[0]
        weights = None if batch.weights is None else batch.weights[first.rows]
        self.optimizer.update_statistics(self._metric(first, batch), weights)
        losses = actor_critic_losses(outputs, batch, normalize_advantages=settings.normalize_advantages)
        self.optimizer.zero_grad()
        with record_function("acktr::loss_backward"):
            losses.objective(settings).backward()
        self.optimizer.step()
        figures = {
            "policy_loss": losses.policy.detach(),
            "value_loss": losses.value.detach(),
            "entropy": losses.entropy.detach(),
            "explained_variance": _explained_variance(outputs, batch),
            "kl_predicted": self.optimizer.kl_predicted,
            "trust_region_scale": self.optimizer.scale,
        }
        if self._updates % settings.kl_interval == 0:
            figures.update(self._measure(first, batch, weights))
        self._updates += 1
        return UpdateReport(figures=figures)

    def _forward(self, batch: Batch) -> list[Outputs]:
        rows = len(batch.advantages)
        parts = max(1, min(rows, round(1 / self.settings.stat_fraction)))
        if parts == 1 or not self.optimizer.statistics_due:
            with self.optimizer.capture():
                distribution, values = self.policy(batch.observations)
            return [Outputs(distribution=distribution, values=values, rows=slice(None))]
        offset = self._rotation % parts
        self._rotation += 1
        index = torch.arange(rows, device=batch.observations.device)
        chosen, rest = index[offset::parts], index[index % parts != offset]
        with self.optimizer.capture():
            distribution, values = self.policy(batch.observations[chosen])
        others, other_values = self.policy(batch.observations[rest])
        return [
            Outputs(distribution=distribution, values=values, rows=chosen),
            Outputs(distribution=others, values=other_values, rows=rest),
        ]

    def _metric(self, part: Outputs, batch: Batch) -> Metric:
        settings = self.settings
        if settings.fisher == "empirical":
            log_probs = part.distribution.log_prob(batch.actions[part.rows])
            residuals = part.values - batch.returns[part.rows]
            return EmpiricalFisher(
                example_losses=-log_probs * batch.advantages[part.rows] + residuals.square() / 2 / settings.value_sigma**2
            )
        # the rollout's own actions are draws from the policy that is being differentiated
        draw = batch.actions[part.rows] if settings.fisher == "sampled" else None
        return Joint(
            Fisher(distribution=part.distribution, kind=settings.fisher, draw=draw),
            GaussNewton(
                values=part.values, sigma=settings.value_sigma, kind=settings.fisher, generator=self._generator
            ),
        )

    @torch.no_grad()
    def _measure(self, part: Outputs, batch: Batch, weights: Tensor | None) -> dict[str, Tensor]:
        """The KL that the step really made, on the rows of the first part."""
        after, values = self.policy(batch.observations[part.rows])
        policy = mean_kl(part.distribution, after, weights)
        moved = (values - part.values).square() / (2 * self.settings.value_sigma**2)
        measured = policy + weighted_mean(moved, weights) if self.settings.shared_trunk else policy
        return {"kl_measured": measured, "kl_policy": policy}

    def learning_rate(self) -> float:
        """The learning rate of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def counters(self) -> Mapping[str, int]:
        """Retries and stale inverses of the guard ladder, and batches skipped."""
        return {
            "decomposition_retries": self.optimizer.retry_count,
            "stale_inverses": self.optimizer.stale_count,
            "skipped_batches": int(self.optimizer.skipped.item()),
        }

    def state_dict(self) -> dict[str, Any]:
        """K-FAC's state and the rotation counters; the generator is its owner's to save."""
        return {"optimizer": optimizer_state(self.optimizer), "updates": self._updates, "rotation": self._rotation}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        self._updates = state["updates"]
        self._rotation = state["rotation"]


@torch.no_grad()
def _explained_variance(outputs: list[Outputs], batch: Batch) -> Tensor:
    values = torch.empty_like(batch.returns)
    for part in outputs:
        values[part.rows] = part.values
    return explained_variance(values, batch.returns, batch.weights)
