"""ACKTR: the natural-gradient update of a policy and a value (Wu et al. 2017, arXiv:1708.05144).

With a shared trunk one K-FAC optimizer treats both heads, under the joint Fisher of the policy and a Gaussian value.
With separate torsos the policy and the critic each have their own, so that the policy's trust region bounds the
policy's KL alone.

The batch goes through the network in two parts when `stat_fraction` is below 1: the rows that the curvature is taken
from, with K-FAC's capture on, and the rest. Together they make one loss and one backward pass, so the factors cost no
second forward pass, and the sampled backward runs over the first part only.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from acktr.agents.divergence import Divergence, allowed, joined_values, measure
from acktr.agents.losses import Outputs, actor_critic_losses, explained_variance, learnt_advantages
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.agents.settings_learning import Schedule
from acktr.agents.step_control import StepControl
from acktr.agents.updates import UpdateReport, load_optimizer_state, optimizer_state, scheduled
from acktr.errors import UserError
from acktr.kfac import KFAC, EmpiricalFisher, Fisher, GaussNewton, Joint, Metric

SIGMA_DECAY = 0.95
"""Decay of the running mean square of R - V, for `value_sigma` 0."""


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
        self.critic: KFAC | None = None
        frames = len(policy.encoder.space_shape) == 3 and not policy.own_torso
        advice = "frames have them if they are uint8 and the network is nature" if frames else "or use algorithm a2c"
        if policy.value_torso is None:
            self.optimizer = _kfac(policy, settings, lr=settings.lr, max_kl=settings.max_kl, advice=advice)
        else:
            actor = nn.ModuleDict({"torso": policy.torso, "head": policy.policy_head})
            critic = nn.ModuleDict({"torso": policy.value_torso, "head": policy.value_head})
            self.optimizer = _kfac(actor, settings, lr=settings.lr, max_kl=settings.max_kl, advice=advice)
            self.critic = _kfac(critic, settings, lr=settings.critic_lr, max_kl=settings.critic_max_kl, advice=advice)
        self._limits: tuple[float | None, float | None] = (None, None)
        self._desired_kl: float | None = None
        self._updates = 0
        self._rotation = 0
        device = next(policy.parameters()).device
        self._step_control = StepControl(torch.zeros((), device=device))
        self._residual_square = torch.zeros((), device=device)
        self._residual_mass = torch.zeros((), device=device)

    def update(self, batch: Batch, *, progress: float) -> UpdateReport:
        """Learn from one batch."""
        settings = self.settings
        self._follow_schedules(progress)
        with record_function("acktr::forward"):
            outputs = self._forward(batch)
        first = outputs[0]
        weights = None if batch.weights is None else batch.weights[first.rows]
        losses = actor_critic_losses(outputs, batch, normalize_advantages=settings.normalize_advantages)
        sigma = self._sigma(losses.value.detach(), batch.weights)
        self._update_statistics(first, batch, weights, sigma)
        entropy_coef = scheduled(settings.entropy_coef, settings.entropy_schedule, progress)
        objective = losses.policy - entropy_coef * losses.entropy
        objective = objective + settings.value_coef * losses.value / _scale_of_loss(settings, sigma)
        self.optimizer.zero_grad()
        if self.critic is not None:
            self.critic.zero_grad()
        with record_function("acktr::loss_backward"):
            torch.autograd.backward(objective)
        self.optimizer.step()
        if self.critic is not None:
            self.critic.step()
        divergences: dict[str, Tensor] = {}
        shown = self._updates % settings.kl_interval == 0
        if shown or self._limits != (None, None) or self._desired_kl is not None:
            extremes = self._limits[1] is not None
            moved = measure(self.policy, outputs, batch, sigma, extremes=extremes)
            if self._desired_kl is not None:
                self._step_control.observe(moved.policy, self._desired_kl)
            moved = self._control(moved)
            # with separate torsos the trust region is the policy's alone
            total = moved.policy + moved.value if self.critic is None else moved.policy
            divergences = {"kl_measured": total, "kl_policy": moved.policy}
        if shown:
            divergences["kl_predicted"] = self.optimizer.kl_predicted
        figures = {
            **divergences,
            "policy_loss": losses.policy.detach(),
            "value_loss": losses.value.detach(),
            "entropy": losses.entropy.detach(),
            "explained_variance": explained_variance(joined_values(outputs, batch), batch.returns, batch.weights),
            "trust_region_scale": self.optimizer.scale,
        }
        self._updates += 1
        return UpdateReport(figures=figures)

    def _follow_schedules(self, progress: float) -> None:
        settings = self.settings
        self._limits = (
            _radius(settings.max_measured_kl, settings.kl_schedule, progress),
            _radius(settings.max_measured_value_kl, settings.kl_schedule, progress),
        )
        self._desired_kl = _radius(settings.desired_kl, settings.kl_schedule, progress)
        for optimizer, lr, max_kl in (
            (self.optimizer, settings.lr, settings.max_kl),
            (self.critic, settings.critic_lr, settings.critic_max_kl),
        ):
            for group in () if optimizer is None else optimizer.param_groups:
                group["lr"] = scheduled(lr, settings.lr_schedule, progress)
                group["max_kl"] = _radius(max_kl, settings.kl_schedule, progress)
        if self._desired_kl is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"] * self._step_control.factor

    def _forward(self, batch: Batch) -> list[Outputs]:
        rows = len(batch.advantages)
        parts = max(1, min(rows, round(1 / self.settings.stat_fraction)))
        if parts == 1 or not self.optimizer.statistics_due:
            with self._capture():
                return [self._outputs(batch, slice(None))]
        device = batch.returns.device
        chosen, rest = rotating_part(rows, batch.num_envs, parts, self._rotation)
        self._rotation += 1
        with self._capture():
            first = self._outputs(batch, chosen.to(device))
        return [first, self._outputs(batch, rest.to(device))]

    def _outputs(self, batch: Batch, rows: Tensor | slice) -> Outputs:
        if not self.settings.center_values:
            distribution, values = self.policy(batch.observed(rows))
            return Outputs(distribution=distribution, values=values, rows=rows)
        distribution, values, held = self.policy.evaluate(batch.observed(rows))
        return Outputs(distribution=distribution, values=values, rows=rows, held_values=held)

    @contextlib.contextmanager
    def _capture(self) -> Iterator[None]:
        with self.optimizer.capture(), contextlib.nullcontext() if self.critic is None else self.critic.capture():
            yield

    def _update_statistics(self, part: Outputs, batch: Batch, weights: Tensor | None, sigma: Tensor | float) -> None:
        policy, value = self._metrics(part, batch, sigma)
        if self.critic is None:
            self.optimizer.update_statistics(Joint(policy, value), weights)
        else:
            self.optimizer.update_statistics(policy, weights)
            self.critic.update_statistics(value, weights)

    def _metrics(self, part: Outputs, batch: Batch, sigma: Tensor | float) -> tuple[Metric, Metric]:
        settings = self.settings
        if settings.fisher == "empirical":
            log_probs = part.distribution.log_prob(batch.actions[part.rows])
            residuals = (part.values - batch.returns[part.rows]) / sigma
            advantages = learnt_advantages(batch, normalize=settings.normalize_advantages)
            return (
                EmpiricalFisher(example_losses=-log_probs * advantages[part.rows]),
                EmpiricalFisher(example_losses=residuals.square() / 2),
            )
        # the rollout's own actions are draws from the policy that is being differentiated
        draw = batch.actions[part.rows] if settings.fisher == "sampled" else None
        return (
            Fisher(distribution=part.distribution, kind=settings.fisher, draw=draw),
            GaussNewton(values=part.values, sigma=sigma, kind=settings.fisher, generator=self._generator),
        )

    def _sigma(self, value_loss: Tensor, weights: Tensor | None) -> Tensor | float:
        """The value's standard deviation: the setting, or the debiased running rms of R - V."""
        if self.settings.value_sigma > 0:
            return self.settings.value_sigma
        usable = torch.isfinite(value_loss)
        if weights is not None:
            usable = usable & (weights.sum() > 0)
        fresh = (1 - SIGMA_DECAY) * usable.to(value_loss)
        self._residual_square = (1 - fresh) * self._residual_square + torch.where(usable, fresh * 2 * value_loss, 0.0)
        self._residual_mass = (1 - fresh) * self._residual_mass + fresh
        known = self._residual_mass > 0
        mean_square = self._residual_square / torch.where(known, self._residual_mass, 1.0)
        return torch.where(known, mean_square.sqrt().clamp(min=1e-6), 1.0)

    def _control(self, divergence: Divergence) -> Divergence:
        """Shorten a step whose measured KL exceeds its limit, if any, taking it as quadratic in the step's length.

        A shared trunk makes one step, shortened until both parts keep their limits; what is returned for a shortened
        step is the quadratic estimate.
        """
        if self._limits == (None, None):
            return divergence
        farthest = divergence.value
        if divergence.extreme is not None:
            farthest = torch.maximum(farthest, divergence.extreme)
        policy, value = allowed(divergence.policy, self._limits[0]), allowed(farthest, self._limits[1])
        if self.critic is None:
            policy = value = torch.minimum(policy, value)
        else:
            self.critic.contract(value)
        self.optimizer.contract(policy)
        return divergence.shortened(policy, value)

    def learning_rate(self) -> float:
        """The learning rate of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def counters(self) -> Mapping[str, int]:
        """Retries and stale inverses of the guard ladder, and batches skipped."""
        optimizers = [self.optimizer] if self.critic is None else [self.optimizer, self.critic]
        return {
            "decomposition_retries": sum(optimizer.retry_count for optimizer in optimizers),
            "stale_inverses": sum(optimizer.stale_count for optimizer in optimizers),
            "skipped_batches": max(int(optimizer.skipped.item()) for optimizer in optimizers),
        }

    def state_dict(self) -> dict[str, Any]:
        """K-FAC's state and the rotation counters; the generator is its owner's to save."""
        return {
            "optimizer": optimizer_state(self.optimizer),
            "critic": None if self.critic is None else optimizer_state(self.critic),
            "updates": self._updates,
            "rotation": self._rotation,
            "step_control": self._step_control.state_dict(),
            "residual_square": self._residual_square,
            "residual_mass": self._residual_mass,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self.critic is not None:
            load_optimizer_state(self.critic, state["critic"])
        self._updates = state["updates"]
        self._rotation = state["rotation"]
        self._step_control.load_state_dict(state["step_control"])
        device = self._residual_square.device
        self._residual_square = state["residual_square"].to(device, copy=True)
        self._residual_mass = state["residual_mass"].to(device, copy=True)


def rotating_part(rows: int, num_envs: int, parts: int, turn: int) -> tuple[Tensor, Tensor]:
    """Which rows the curvature is taken from: every environment's, at every so many of its steps.

    Neighbouring frames say much the same, so the rows of a part lie on diagonals of (steps, environments).

    Args:
        rows: M, a multiple of `num_envs`, time-major.
        num_envs: N.
        parts: into how many the batch is divided, at most M; none of them is empty.
        turn: the part wanted, modulo `parts`.

    Returns:
        Indices of the part's rows and of all others, on the CPU.
    """
    index = torch.arange(rows)
    diagonal = index % num_envs + index // num_envs
    if parts > num_envs + rows // num_envs - 1:  # fewer diagonals than parts
        diagonal = index
    taken = diagonal % parts == turn % parts
    return index[taken], index[~taken]


def _radius(radius: float, schedule: Schedule, progress: float) -> float | None:
    """A trust region's radius under its schedule, None for a setting of 0.

    A radius that falls to 0 would be none; the last update of a falling one stays above it.
    """
    return max(scheduled(radius, schedule, progress), 1e-12) if radius > 0 else None


def _kfac(model: nn.Module, settings: Settings, *, lr: float, max_kl: float, advice: str) -> KFAC:
    try:
        return _build_kfac(model, settings, lr=lr, max_kl=max_kl)
    except ValueError as error:
        raise UserError(f"{error}; {advice}") from None


def _build_kfac(model: nn.Module, settings: Settings, *, lr: float, max_kl: float) -> KFAC:
    return KFAC(
        model,
        lr=lr,
        max_kl=max_kl if max_kl > 0 else None,
        momentum=settings.momentum,
        damping=settings.damping,
        damping_mode=settings.damping_mode,
        stat_decay=settings.stat_decay,
        stat_window=settings.stat_window,
        stat_interval=settings.stat_interval,
        inverse_interval=settings.inverse_interval,
        position_stride=settings.position_stride,
        bias=settings.bias,
        conv_factors=settings.conv_factors,
        compat=settings.compat,
    )


def _scale_of_loss(settings: Settings, sigma: Tensor | float) -> Tensor | float:
    """With a running sigma the value loss is the Gaussian's `1/2 (v - R)²/sigma²`, so reward scale drops out."""
    return sigma**2 if settings.value_sigma == 0 else 1.0
