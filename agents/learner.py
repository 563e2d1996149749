"""One K-FAC optimizer and the heads it trains: the policy's, the critic's, or both on a shared trunk."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from acktr.agents.damping_control import DampingControl
from acktr.agents.divergence import Divergence, measure
from acktr.agents.forward_pass import ForwardPass, ForwardPasses, Head
from acktr.agents.losses import (
    Policies,
    Values,
    explained_variance,
    joined_values,
    learnt_advantages,
    policy_losses,
    value_loss,
)
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.agents.settings_learning import Schedule
from acktr.agents.step_control import StepControl, backtrack
from acktr.agents.updates import add_up_gradients, load_optimizer_state, optimizer_state, scheduled
from acktr.agents.value_scale import ValueScale
from acktr.errors import UserError
from acktr.kfac import KFAC, EmpiricalFisher, Fisher, GaussNewton, Joint, Metric, NoisyKFAC
from acktr.kfac.distributed import Ranks
from acktr.kfac.distributions import log_prob
from acktr.kfac.draws import Source


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """How far one learner's steps go; each field as in `Settings`."""

    lr: float
    max_kl: float
    damping: float
    momentum: float


class Learner:
    """Makes one K-FAC step after another on batches, under the step control that the settings ask for.

    Args:
        model: the modules that it trains, the named heads among them.
        policy: the whole network.
        settings: everything under "optimizer" there, and the objective's coefficients.
        region: in place of the settings' own lr, max_kl, damping and momentum.
        heads: whose losses and metrics enter.
        generator: draws for the sampled Fisher, on the policy's device.
        ranks: the processes that hold the parts of each batch; None where it is whole.

    Attributes:
        rejected: steps that the line search took back whole.

    Raises:
        ValueError: a layer too wide to factor, or a damping of 0 that is to be controlled.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: ActorCritic,
        settings: Settings,
        *,
        region: Region,
        heads: tuple[Head, ...],
        generator: torch.Generator,
        ranks: Ranks | None = None,
    ) -> None:
        self.policy = policy
        self.settings = settings
        self.region = region
        self.heads = heads
        explores = settings.exploration == "noisy-kfac" and "policy" in heads
        self.optimizer = _build_kfac(model, settings, region, generator=generator if explores else None, ranks=ranks)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.rejected = 0
        self._generator = generator
        self._passes = ForwardPasses(
            policy,
            heads,
            fraction=settings.stat_fraction,
            measured_fraction=settings.kl_fraction,
            holds_values=settings.center_values,
        )
        like = torch.zeros((), device=next(policy.parameters()).device)
        self._step_control = StepControl(like)
        self._damping_control = DampingControl(like)
        if settings.damping_control == "kl-ratio" and region.damping == 0:
            raise ValueError(
                f"damping_control 'kl-ratio' multiplies the damping, and that of the {' and '.join(heads)} is 0: set "
                "a damping above 0, or damping_control 'none'"
            )
        # of the objective, which no control may change
        self._prior_damping = self.optimizer.objective.damping if isinstance(self.optimizer, NoisyKFAC) else 0.0

    def step(self, batch: Batch, scale: ValueScale, *, progress: float, shown: bool) -> dict[str, Tensor]:
        """Learn from one batch.

        Args:
            batch: the rollout.
            scale: of the values.
            progress: share of the run that is over, 0 to 1.
            shown: whether the KL figures are wanted, where step control does not measure them anyway.

        Returns:
            Figures by their name in metrics.csv, 0-d: losses as before the step, KLs of the step.
        """
        settings, optimizer = self.settings, self.optimizer
        self._follow_schedules(progress)
        figures: dict[str, Tensor] = {}
        with self._as_drawn():
            with record_function("acktr::forward"):
                forward = self._passes.run(batch, optimizer)
            policies, values = forward.policies, forward.values
            objective = batch.returns.new_zeros(())
            if policies:
                loss, entropy = policy_losses(policies, batch, normalize_advantages=settings.normalize_advantages)
                objective = objective + loss - _entropy_coef(settings, progress) * entropy
                figures |= {"policy_loss": loss.detach(), "entropy": entropy.detach()}
            if values:
                loss = value_loss(values, batch)
                objective = objective + settings.value_coef * loss / scale.of_loss
                figures["value_loss"] = loss.detach()
            if forward.is_captured:
                self._update_statistics(forward, batch, scale.sigma)
            optimizer.zero_grad()
            with record_function("acktr::loss_backward"):
                torch.autograd.backward(objective)
        figures = add_up_gradients(self._parameters, figures, batch.part)
        if values:
            known = joined_values(values, batch)
            figures["explained_variance"] = explained_variance(known, batch.returns, batch.weights, batch.part)
        optimizer.step()
        with record_function("acktr::step_control"):
            moved = self._control(forward, batch, scale.sigma, progress=progress, shown=shown)
        if moved is not None and policies:
            figures |= {"kl_measured": moved.policy + moved.value, "kl_policy": moved.policy}
            if shown or self.region.max_kl > 0:  # else it takes products with F, which cost as much as the step
                figures["kl_predicted"] = optimizer.kl_predicted
        if policies:
            figures |= {"trust_region_scale": optimizer.scale, **self._adapted(shown=shown)}
        return figures

    def _adapted(self, *, shown: bool) -> dict[str, Tensor]:
        """What follows the training by itself: a damping under control, a posterior's distance from its prior."""
        figures: dict[str, Tensor] = {}
        if self.settings.damping_control == "kl-ratio":
            figures["damping"] = self.region.damping * self._damping_control.factor
        if shown and isinstance(self.optimizer, NoisyKFAC):
            figures["kl_to_prior"] = self.optimizer.kl_to_prior()
        return figures

    @property
    def turn(self) -> int:
        """How often a sample was captured, which the rotation of the rows goes by."""
        return self._passes.turn

    def exploring(self) -> contextlib.AbstractContextManager[None]:
        """For a rollout to be made in: the network acts with weights drawn anew where the settings ask for that."""
        if isinstance(self.optimizer, NoisyKFAC):
            return self.optimizer.sampled()
        return contextlib.nullcontext()

    def _as_drawn(self) -> contextlib.AbstractContextManager[None]:
        """The weights that the rollout was made with, moved by what steps have moved their mean since."""
        if isinstance(self.optimizer, NoisyKFAC):
            return self.optimizer.sampled(again=self.optimizer.has_drawn)
        return contextlib.nullcontext()

    def _follow_schedules(self, progress: float) -> None:
        settings, region = self.settings, self.region
        for group in self.optimizer.param_groups:
            group["lr"] = scheduled(region.lr, settings.lr_schedule, progress)
            group["max_kl"] = self._radius(region.max_kl, progress)
            if self._desired_kl(progress) is not None:
                group["lr"] = group["lr"] * self._step_control.factor
            if settings.damping_control == "kl-ratio":
                group["damping"] = self._prior_damping + region.damping * self._damping_control.factor

    def _radius(self, radius: float, progress: float) -> float | None:
        """A trust region's radius under its schedule, None for a setting of 0.

        A radius that falls to 0 would be none; the last update of a falling one stays above it.
        """
        schedule: Schedule = self.settings.kl_schedule
        return max(scheduled(radius, schedule, progress), 1e-12) if radius > 0 else None

    def _desired_kl(self, progress: float) -> float | None:
        return self._radius(self.settings.desired_kl, progress) if "policy" in self.heads else None

    # --- the curvature -----------------------------------------------------------------------------------------

    def _update_statistics(self, forward: ForwardPass, batch: Batch, sigma: Tensor | float) -> None:
        sample, chosen = forward.sample, forward.chosen
        draws: Source = self._generator
        if chosen.places is not None:
            draws = batch.part.draws(self._generator, chosen.places, chosen.number)
        metrics: list[Metric] = []
        if sample.policies is not None:
            metrics.append(self._policy_metric(sample.policies, batch, draws))
        if sample.values is not None:
            metrics.append(self._value_metric(sample.values, batch, sigma, draws))
        weights = None if batch.weights is None else batch.weights[sample.rows]
        metric = metrics[0] if len(metrics) == 1 else Joint(*metrics)
        try:
            self.optimizer.update_statistics(metric, weights, places=chosen.positions)
        except ValueError as error:  # a torso whose layers the curvature does not fit
            raise UserError(str(error)) from error

    def _policy_metric(self, part: Policies, batch: Batch, draws: Source) -> Metric:
        settings = self.settings
        if settings.fisher == "empirical":
            log_probs = log_prob(part.distribution, batch.actions[part.rows])
            advantages = learnt_advantages(batch, normalize=settings.normalize_advantages)
            return EmpiricalFisher(example_losses=-log_probs * advantages[part.rows])
        # the rollout's own actions are most often draws from the policy that is being differentiated
        draw = batch.actions[part.rows] if settings.fisher == "sampled" and batch.is_on_policy else None
        return Fisher(distribution=part.distribution, kind=settings.fisher, draw=draw, generator=draws)

    def _value_metric(self, part: Values, batch: Batch, sigma: Tensor | float, draws: Source) -> Metric:
        if self.settings.fisher == "empirical":
            return EmpiricalFisher(example_losses=((part.values - batch.returns[part.rows]) / sigma).square() / 2)
        return GaussNewton(values=part.values, sigma=sigma, kind=self.settings.fisher, generator=draws)

    # --- the length of the step --------------------------------------------------------------------------------

    def _control(
        self,
        forward: ForwardPass,
        batch: Batch,
        sigma: Tensor | float,
        *,
        progress: float,
        shown: bool,
    ) -> Divergence | None:
        """Measure the step and shorten it where a limit or the line search says so; None where nobody asks."""
        settings, desired_kl = self.settings, self._desired_kl(progress)
        policies, values = forward.policies, forward.values
        searches = settings.line_search > 0 and bool(policies)
        policy_limit = self._radius(settings.max_measured_kl, progress) if policies else None
        if searches and policy_limit is None:
            policy_limit = self._radius(self.region.max_kl, progress)
        value_limit = self._radius(settings.max_measured_value_kl, progress) if values else None
        limits = (policy_limit, value_limit)
        adapts = settings.damping_control == "kl-ratio"
        if not (searches or limits != (None, None) or desired_kl is not None or adapts or (shown and policies)):
            return None

        def measured() -> Divergence:
            with self._as_drawn():
                return measure(
                    self.policy,
                    forward.parts if searches else [forward.measured],
                    batch,
                    sigma=sigma,
                    extremes=joined_values(values, batch) if value_limit is not None else None,
                    normalize_advantages=settings.normalize_advantages,
                )

        moved = measured()
        if desired_kl is not None:
            self._step_control.observe(moved.policy, desired_kl)
        if adapts:
            self._damping_control.observe(moved.policy + moved.value, self.optimizer.kl_predicted)
        if searches:
            moved, good = backtrack(moved, measured, self.optimizer.contract, limits, most=settings.line_search)
            if good:
                return moved
            self.rejected += 1
            nothing = torch.zeros_like(moved.policy)
            self.optimizer.contract(nothing, skips=False)
            return moved.shortened(nothing)
        if limits == (None, None):
            return moved
        part = moved.allowed(*limits)
        self.optimizer.contract(part)
        return moved.shortened(part)

    # --- what outlives a step ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """K-FAC's state, the rotation and the step size; the generator is its owner's to save."""
        return {
            "optimizer": optimizer_state(self.optimizer),
            "rotation": self._passes.turn,
            "rejected": self.rejected,
            "step_control": self._step_control.state_dict(),
            "damping_control": self._damping_control.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        self._passes.turn = state["rotation"]
        self.rejected = state["rejected"]
        self._step_control.load_state_dict(state["step_control"])
        self._damping_control.load_state_dict(state["damping_control"])


def _entropy_coef(settings: Settings, progress: float) -> float:
    return scheduled(settings.entropy_coef, settings.entropy_schedule, progress)


def _build_kfac(
    model: nn.Module,
    settings: Settings,
    region: Region,
    *,
    generator: torch.Generator | None,
    ranks: Ranks | None = None,
) -> KFAC:
    """K-FAC, or where there is a generator of draws K-FAC with a posterior."""
    options: dict[str, Any] = {
        "lr": region.lr,
        "max_kl": region.max_kl if region.max_kl > 0 else None,
        "momentum": region.momentum,
        "damping_mode": settings.damping_mode,
        "stat_decay": settings.stat_decay,
        "stat_window": settings.stat_window,
        "stat_interval": settings.stat_interval,
        "inverse_interval": settings.inverse_interval,
        "stagger_inverses": settings.stagger_inverses,
        "position_stride": settings.position_stride,
        "bias": settings.bias,
        "conv_factors": settings.conv_factors,
        "curvature": settings.curvature,
        "structure": settings.structure,
        "kfoc_steps": settings.kfoc_steps,
        "kfoc_aggregation": settings.kfoc_aggregation,
        "compat": settings.compat,
        "ranks": ranks,
        "inverse_placement": settings.inverse_placement,
    }
    if generator is None:
        return KFAC(model, damping=region.damping, **options)
    return NoisyKFAC(
        model,
        examples=settings.noise_examples,
        prior_variance=settings.noise_prior,
        extrinsic_damping=region.damping,
        generator=generator,
        **options,
    )
