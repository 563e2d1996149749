"""ACKTR: the natural-gradient update of a policy and a value (Wu et al. 2017, arXiv:1708.05144).

With a shared trunk one K-FAC optimizer treats both heads, under the joint Fisher of the policy and a Gaussian value.
With separate torsos the policy and the critic each have their own, so that the policy's trust region bounds the
policy's KL alone, and the critic may make several steps on a batch; to compare with, Adam may train the critic.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from acktr.agents.adam_critic import AdamCritic
from acktr.agents.forward_pass import Head
from acktr.agents.learner import Learner, Region
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.agents.updates import UpdateReport
from acktr.agents.value_scale import ValueScale
from acktr.errors import UserError
from acktr.kfac.conditions import condition_numbers
from acktr.kfac.curvatures import TooWideError
from acktr.kfac.distributed import Ranks
from acktr.kfac.units import Unit


class ACKTRUpdater:
    """One K-FAC step per batch inside the trust region, of a critic with a torso of its own perhaps several.

    Args:
        policy: the network to train.
        settings: everything under "optimizer" there, and the objective's coefficients.
        generator: draws for the sampled Fisher, on the policy's device.
        ranks: the processes that hold the parts of each batch; None where it is whole.

    Raises:
        UserError: a curvature that does not fit the network or the other settings.
    """

    def __init__(
        self, policy: ActorCritic, settings: Settings, generator: torch.Generator, ranks: Ranks | None = None
    ) -> None:
        self.policy = policy
        self.settings = settings
        self._updates = 0
        device = next(policy.parameters()).device
        self._scale = ValueScale(settings.value_sigma, device)
        self._skipped = torch.zeros((), device=device)
        region = Region(lr=settings.lr, max_kl=settings.max_kl, damping=settings.damping, momentum=settings.momentum)
        critic_region = Region(
            lr=settings.critic_lr,
            max_kl=settings.critic_max_kl,
            damping=settings.critic_damping,
            momentum=settings.critic_momentum,
        )

        def learner(model: nn.Module, region: Region, heads: tuple[Head, ...]) -> Learner:
            try:
                return Learner(model, policy, settings, region=region, heads=heads, generator=generator, ranks=ranks)
            except TooWideError as error:
                frames = len(policy.encoder.space_shape) == 3 and not policy.own_torso
                advice = "frames have them if they are uint8 and the network is nature" if frames else ""
                raise UserError(f"{error}; {advice or 'or use algorithm a2c'}") from None
            except ValueError as error:
                raise UserError(str(error)) from None

        self.critic: Learner | None = None
        self.adam_critic: AdamCritic | None = None
        if policy.value_torso is None:
            self.actor = learner(policy, region, ("policy", "value"))
        else:
            actor = nn.ModuleDict({"torso": policy.torso, "head": policy.policy_head})
            critic = nn.ModuleDict({"torso": policy.value_torso, "head": policy.value_head})
            self.actor = learner(actor, region, ("policy",))
            if settings.critic_optimizer == "adam":
                self.adam_critic = AdamCritic(policy, settings)
            else:
                self.critic = learner(critic, critic_region, ("value",))

    def update(self, batch: Batch, *, progress: float) -> UpdateReport:
        """Learn from one batch."""
        if batch.valid_rows == 0:  # nothing to learn, and nothing to measure a step of the momentum on
            return UpdateReport(figures={})
        shown = self._updates % self.settings.kl_interval == 0
        self._updates += 1
        self._scale.observe(batch)
        before = self._skipped_steps()
        figures = self.actor.step(batch, self._scale, progress=progress, shown=shown)
        if self.critic is not None:
            figures |= self.critic.step(batch, self._scale, progress=progress, shown=shown)
            for _ in range(self.settings.critic_iterations - 1):
                self.critic.step(batch, self._scale, progress=progress, shown=False)
        if self.adam_critic is not None:
            figures |= self.adam_critic.step(batch, self._scale, progress=progress)
            for _ in range(self.settings.critic_iterations - 1):
                self.adam_critic.step(batch, self._scale, progress=progress)
        self._skipped += self._skipped_steps() > before  # a batch counts once, however many steps are made on it
        return UpdateReport(figures=figures)

    def exploring(self) -> contextlib.AbstractContextManager[None]:
        """For a rollout: see `Updater`."""
        return self.actor.exploring()

    def learning_rate(self) -> float:
        """The learning rate of the last update."""
        return float(self.actor.optimizer.param_groups[0]["lr"])

    def counters(self) -> Mapping[str, int]:
        """Retries and stale inverses of the guard ladder, batches skipped, and steps that the line search took back."""
        optimizers = [learner.optimizer for learner in self._learners().values()]
        return {
            "decomposition_retries": sum(optimizer.estimate.retry_count for optimizer in optimizers),
            "stale_inverses": sum(optimizer.estimate.stale_count for optimizer in optimizers),
            "skipped_batches": int(self._skipped.item()),
            "rejected_steps": sum(learner.rejected for learner in self._learners().values()),
        }

    def conditions(self) -> Mapping[str, float]:
        """Condition numbers of the damped factors, by learner, layer and factor. Takes decompositions."""
        found: dict[str, float] = {}
        for name, learner in self._learners().items():
            damping = float(learner.optimizer.param_groups[0]["damping"])
            conditions = condition_numbers(learner.optimizer.units, damping)
            found |= {f"{name}/{which}": value for which, value in conditions.items()}
        return found

    def units(self) -> list[list[Unit]]:
        """Of each learner's optimizer, in the order of their making."""
        return [learner.optimizer.units for learner in self._learners().values()]

    def _skipped_steps(self) -> Tensor:
        skipped = [learner.optimizer.skipped for learner in self._learners().values()]
        if self.adam_critic is not None:
            skipped.append(self.adam_critic.skipped)
        return torch.stack(skipped).sum()

    def _learners(self) -> dict[str, Learner]:
        """Those whose optimizer is K-FAC."""
        return {"actor": self.actor, **({} if self.critic is None else {"critic": self.critic})}

    def state_dict(self) -> dict[str, Any]:
        """K-FAC's state and the rotation counters; the generator is its owner's to save."""
        return {
            "learners": {name: learner.state_dict() for name, learner in self._learners().items()},
            "updates": self._updates,
            "skipped": self._skipped,
            "scale": self._scale.state_dict(),
            **({} if self.adam_critic is None else {"adam_critic": self.adam_critic.state_dict()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for name, learner in self._learners().items():
            learner.load_state_dict(state["learners"][name])
        if self.adam_critic is not None:
            self.adam_critic.load_state_dict(state["adam_critic"])
        self._updates = state["updates"]
        self._skipped = state["skipped"].to(self._skipped, copy=True)
        self._scale.load_state_dict(state["scale"])
