"""K-FAC for supervised learning without a learning rate: steps by the exact quadratic model, damping that adapts.

Martens & Grosse 2015 (arXiv:1503.05671), sections 6 and 7: the step is `δ = α Δ + μ δ_0` of the natural gradient Δ and
the step before, with the coefficients that minimise the quadratic model of the batch; λ follows how well the model
predicts the loss, γ which damping of the inverses gives the better step.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from acktr.kfac.checks import check_count, check_range
from acktr.kfac.metrics import Metric
from acktr.kfac.noisy import NoisyKFAC
from acktr.kfac.optimizer import KFAC
from acktr.kfac.quadratic import Direction, QuadraticModel, combined, fisher_products, inner_products

_ROUNDING = 10
"""A predicted change of less than so many roundings of the loss cannot be told from none."""

Objective = Callable[[], tuple[Tensor, Metric]]
"""Runs the model on a batch: the mean loss (0-d), with its graph, and the metric of the model's outputs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did.

    Attributes:
        loss: the objective before the step, with the penalty on the weights, 0-d.
        predicted: change of the objective that the quadratic model predicts, 0-d.
        alpha: coefficient of the natural gradient, 0-d; the gradient enters with its minus sign.
        mu: coefficient of the step before, 0-d.
        ratio: actual change over predicted one, in steps that adapt λ and whose batch was finite, else None.
        damping: λ of the quadratic model, after this step.
        factor_damping: γ of the inverses, after this step.
    """

    loss: Tensor
    predicted: Tensor
    alpha: Tensor
    mu: Tensor
    ratio: float | None
    damping: float
    factor_damping: float


class LevenbergMarquardt:
    """Steps of a `KFAC` whose lengths, momentum and damping come from the exact quadratic model.

        steps = LevenbergMarquardt(model, KFAC(model, max_kl=None))

        def objective():
            logits = model(x)
            return cross_entropy(logits, y), Fisher(distribution=Categorical(logits=logits))

        report = steps.step(objective)

    The optimizer gives statistics and inverses; its lr, momentum and max_kl are not used, and its damping is set to γ².
    Rows of the same batch serve the gradient, the statistics and the quadratic model.

    The objective must be deterministic, for it is run several times: no dropout in training mode. The model needs
    forward-mode derivatives, which torch's recurrent layers lack on CPUs, and normalisation by the batch in eval mode.

    Args:
        model: the network.
        optimizer: of that model, in damping mode "factored" as in the paper, or "exact"; no `NoisyKFAC`, whose damping
            is its prior's.
        damping: λ at the start (1 to 150; the paper has 150 for autoencoders).
        l2: η, penalty `η/2 |θ|²` on the weights, part of the objective (0 to 1e-4).
        momentum: whether the step before enters.
        damping_interval: steps between adaptations of λ (the paper's T_1).
        factor_interval: steps between adaptations of γ (T_2), at the price of three sets of inverses.
        decay: λ changes by this factor for each step of its interval, γ by its root (19/20 in the paper).
        min_damping: below which λ is not lowered.

    Raises:
        TypeError: an optimizer of another kind.
        ValueError: a setting out of range, the optimizer of another model, or one of several ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: KFAC,
        *,
        damping: float = 1.0,
        l2: float = 0.0,
        momentum: bool = True,
        damping_interval: int = 5,
        factor_interval: int = 20,
        decay: float = 19 / 20,
        min_damping: float = 1e-8,
    ) -> None:
        if not isinstance(optimizer, KFAC) or isinstance(optimizer, NoisyKFAC):
            raise TypeError(f"LevenbergMarquardt takes a KFAC of the model, got {type(optimizer).__name__}")
        if optimizer.ranks is not None:
            raise ValueError("LevenbergMarquardt takes one process: its exact products would be of a rank's part alone")
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        if {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} != trained:
            raise ValueError("the optimizer has other parameters than the model: make it of this model")
        check_range("damping", damping, 0.0, None)
        check_range("l2", l2, 0.0, None)
        check_count("damping_interval", damping_interval, 1)
        check_count("factor_interval", factor_interval, 1)
        check_range("decay", decay, 0.0, 1.0, high_open=True)
        check_range("min_damping", min_damping, 0.0, None)
        self.model = model
        self.optimizer = optimizer
        self.l2 = l2
        self.damping = damping
        self.factor_damping = math.sqrt(damping + l2)
        self.steps = 0
        self._momentum = momentum
        self._damping_interval = damping_interval
        self._factor_interval = factor_interval
        self._decay = decay
        self._min_damping = min_damping
        self._names: dict[Tensor, str] = {
            parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self._previous: Direction | None = None
        self._set_factor_damping(self.factor_damping)

    def step(self, objective: Objective) -> StepReport:
        """Make one step on a batch.

        Where the objective is looked at after the step and is not finite, the step is taken back, and λ rises. A batch
        whose loss or gradient is not finite moves nothing.

        Args:
            objective: of the batch; called once for the gradient, once for each of two to four directions, and where λ
                adapts once more for the loss.
        """
        with self.optimizer.capture():
            loss, metric = objective()
        self.optimizer.update_statistics(metric)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._add_penalty_gradient()
        before = self._with_penalty(loss.detach())
        self.optimizer.advance()
        directions, model = self._proposed(objective)
        coefficients = model.minimiser()
        predicted = model.change(coefficients)
        usable = torch.isfinite(predicted) & torch.isfinite(before)
        change = combined(coefficients, directions)
        parameters = [parameter.detach().clone() for parameter in self._names]
        self._move({name: torch.where(usable, part, 0.0) for name, part in change.items()})
        kept = self._previous or {}
        self._previous = {name: torch.where(usable, part, kept.get(name, 0.0)) for name, part in change.items()}
        self.steps += 1
        ratio = None
        if self.steps % self._damping_interval == 0 and bool(usable):
            ratio = self._adapt_damping(objective, before, predicted)
            if not math.isfinite(ratio):
                self._previous = None
                with torch.no_grad():
                    for parameter, value in zip(self._names, parameters, strict=True):
                        parameter.copy_(value)
        return StepReport(
            loss=before,
            predicted=predicted,
            alpha=coefficients[0],
            mu=coefficients[1] if len(coefficients) > 1 else torch.zeros_like(coefficients[0]),
            ratio=ratio,
            damping=self.damping,
            factor_damping=self.factor_damping,
        )

    # --- the objective's penalty -------------------------------------------------------------------------------

    @torch.no_grad()
    def _with_penalty(self, loss: Tensor) -> Tensor:
        squares = [parameter.square().sum() for parameter in self._names]
        return loss + self.l2 / 2 * torch.stack(squares).sum()

    @torch.no_grad()
    def _add_penalty_gradient(self) -> None:
        for parameter in self._names:
            if parameter.grad is not None:
                parameter.grad.add_(parameter, alpha=self.l2)

    # --- the step ----------------------------------------------------------------------------------------------

    def _proposed(self, objective: Objective) -> tuple[list[Direction], QuadraticModel]:
        """The directions and their model, by the γ of three whose step is the best where γ is to adapt."""
        if (self.steps + 1) % self._factor_interval:
            return self._modelled(objective)
        ratio = self._decay ** (self._factor_interval / 2)
        lowest = math.sqrt(self.l2 + self._min_damping)
        candidates = [max(self.factor_damping * factor, lowest) for factor in (1.0, ratio, 1 / ratio)]
        found = []
        for candidate in candidates:
            self._damp_factors(candidate)
            directions, model = self._modelled(objective)
            found.append((float(model.change(model.minimiser())), candidate, directions, model))
        _, best, directions, model = min(found, key=lambda one: one[0])
        self._damp_factors(best)
        return directions, model

    def _modelled(self, objective: Objective) -> tuple[list[Direction], QuadraticModel]:
        gradients = self.optimizer.natural_gradient()
        directions: list[Direction] = [{self._names[parameter]: -part for parameter, part in gradients.items()}]
        if self._momentum and self._previous is not None:
            directions.append(self._previous)
        curvature = fisher_products(self.model, lambda: objective()[1], directions)
        curvature = curvature + (self.damping + self.l2) * inner_products(directions)
        slopes = torch.stack([self._slope(direction) for direction in directions])
        return directions, QuadraticModel(curvature=curvature, slopes=slopes)

    def _slope(self, direction: Direction) -> Tensor:
        terms = [
            (parameter.grad * direction[name]).sum().double()
            for parameter, name in self._names.items()
            if parameter.grad is not None and name in direction
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def _move(self, change: Direction) -> None:
        for parameter, name in self._names.items():
            if name in change:
                parameter.add_(change[name])

    # --- damping -----------------------------------------------------------------------------------------------

    def _adapt_damping(self, objective: Objective, before: Tensor, predicted: Tensor) -> float:
        """Follow the reduction ratio, and return it; infinite where the objective is not finite after the step."""
        with torch.no_grad():
            after = self._with_penalty(objective()[0])
        ratio = float((after - before).double() / predicted)
        factor = self._decay**self._damping_interval
        rounding = _ROUNDING * torch.finfo(before.dtype).eps * float(before.abs())
        if math.isfinite(ratio) and float(predicted.abs()) <= rounding:  # at the minimum there is nothing to learn from
            return ratio
        if ratio > 0.75:
            self.damping = max(self.damping * factor, self._min_damping)
        elif not ratio >= 0.25:  # NaN too
            self.damping = self.damping / factor
        return ratio

    def _damp_factors(self, gamma: float) -> None:
        self._set_factor_damping(gamma)
        self.optimizer.refresh()

    def _set_factor_damping(self, gamma: float) -> None:
        self.factor_damping = gamma
        for group in self.optimizer.param_groups:
            group["damping"] = gamma**2

    # --- what outlives a step ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """λ, γ, the step before and the count; the optimizer's own state is apart."""
        previous = None if self._previous is None else {name: part.clone() for name, part in self._previous.items()}
        return {
            "damping": self.damping,
            "factor_damping": self.factor_damping,
            "steps": self.steps,
            "previous": previous,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.damping, self.steps = state["damping"], state["steps"]
        self._set_factor_damping(state["factor_damping"])
        previous: dict[str, Tensor] | None = state["previous"]
        named = {name: parameter for parameter, name in self._names.items()}
        self._previous = None
        if previous is not None:
            self._previous = {name: part.to(named[name], copy=True) for name, part in previous.items()}
