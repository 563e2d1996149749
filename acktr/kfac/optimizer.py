"""K-FAC with a KL trust region, as a `torch.optim.Optimizer`.

One step, in order: gradient g -> preconditioned u = (F + λ)⁻¹ g -> momentum m = (μ m + (1 - μ) u), debiased ->
trust region η = min(lr, sqrt(2 max_kl / mᵀ F m)) with F undamped -> parameters move by s = -η m.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from acktr.kfac.averages import looks_are_free
from acktr.kfac.base import PlainOptimizer
from acktr.kfac.blocks import Damping
from acktr.kfac.checks import check_choice, check_precision, check_range
from acktr.kfac.curvatures import BiasMode, BlockChoice, Curvature, Structure
from acktr.kfac.distributed import Ranks
from acktr.kfac.estimate import FisherEstimate
from acktr.kfac.kronecker import DampingMode
from acktr.kfac.metrics import Metric
from acktr.kfac.momentum import Momentum
from acktr.kfac.optimal_factors import Aggregation
from acktr.kfac.pace import Pace
from acktr.kfac.placement import InversePlacement
from acktr.kfac.proposals import Proposal, propose, with_gradient
from acktr.kfac.rows import GradientRows
from acktr.kfac.rules import baselines_step, natural_step, slope
from acktr.kfac.statistics import FactorKind
from acktr.kfac.step import AppliedStep
from acktr.kfac.trust_region import baselines_scale
from acktr.kfac.units import Unit

Compat = Literal["none", "baselines"]


class KFAC(PlainOptimizer):
    """Kronecker-factored natural gradient inside a KL trust region (Wu et al. 2017, arXiv:1708.05144).

    Linear and Conv2d weights get a Kronecker-factored block with their bias as a homogeneous coordinate; separate
    biases and normalisation layers a full or diagonal one; a small standalone parameter, such as a Gaussian's log-std,
    its exact block. Any other parameter gets its plain gradient and is named once in a warning. The model is never
    modified. An update::

        optimizer = KFAC(model, lr=0.25, max_kl=1e-3)
        with optimizer.capture():
            logits = model(x)
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits)))
        optimizer.zero_grad()
        loss(logits).backward()
        optimizer.step()

    Args:
        model: the network. Parameters without `requires_grad` are left alone.
        lr: largest step size η (0.03 to 1; Wu et al. use 0.25). In `param_groups`; torch's schedulers work on it.
        max_kl: trust region δ in nats per step (1e-4 to 1e-2), or None for none. In the first of `param_groups`.
        momentum: decay μ of the averaged natural gradient (0 to 0.95). In the first of `param_groups`.
        damping: λ added to each block (1e-3 to 0.1). In `param_groups`.
        damping_mode: "factored" (Cholesky, trace-norm π) or "exact" (eigenbasis). λ does not carry over between them.
        stat_decay: decay of the running factors (0.95 to 0.99).
        stat_window: how far back the running factors reach while they are young, as a share of the updates so far
            (0.1 to 1); 1 leaves it to `stat_decay`. A network changes most at first, and curvature of long ago then
            misleads, while later a long memory is what knows the rare inputs.
        stat_interval: statistics are taken every so many steps.
        inverse_interval: each inverse is refreshed every so many steps, and young ones more often: at every step at
            first, every second from the 20th on, and so up to here.
        stagger_inverses: whether the layers take turns, so that no step has much more to do than another; without,
            all inverses are refreshed at the same step, and `ranks` make theirs at the same time.
        position_stride: a convolution's inputs are taken at every so many rows and columns of its output, on grids
            that shift from example to example and from update to update (TF-kfac and Martens & Grosse thin likewise);
            1 takes all positions.
        bias: "joint" (homogeneous coordinate) or "separate" (a block of its own, as in the published Atari code).
        conv_factors: "expand" (KFC) or "reduce" (Eschenhagen et al. 2023).
        curvature: of a weight's block. "kfac"; "ekfac", with the second moments of the gradient in K-FAC's eigenbasis
            (George et al. 2018); "kfoc", the Kronecker product nearest to the block (Schnaus et al. 2021); "ekfoc",
            that correction on K-FOC's basis; "diagonal"; "full", the whole block, of at most 5,000 parameters a layer.
        structure: "block-diagonal", or "block-tridiagonal": the inverse also couples neighbouring layers (Martens &
            Grosse 2015, section 4.3). For curvature "kfac", factored damping and layers in a chain; convolutions are
            then taken as under `conv_factors="reduce"`.
        kfoc_steps: of K-FOC's power method on each batch, from the running factors (1 to 3).
        kfoc_aggregation: of K-FOC's batches. "running": the product nearest to the running one and the batch's
            together; "approx": each factor averaged by itself.
        compat: "baselines" reproduces the published code's rescaling by the damped u·g without the factor 2, with
            momentum after it, so that published settings carry over. Needs damping_mode "exact".
        ranks: the processes that each hold a part of every batch. The curvature is then that of the whole batch on all
            of them; gradients have to be averaged over them before `step`, as DistributedDataParallel does.
        inverse_placement: "broadcast": a rank decomposes its share of the blocks and gives the inverses to all;
            "owner": it keeps them, and gives the preconditioned gradients to all at every step.

    Raises:
        TypeError: `model` is no module.
        ValueError: a setting out of range, a model without trainable parameters or with some of less than single
            precision (use torch.autocast for those forward passes), or a layer too large for the curvature.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.25,
        max_kl: float | None = 1e-3,
        momentum: float = 0.9,
        damping: float = 0.01,
        damping_mode: DampingMode = "factored",
        stat_decay: float = 0.99,
        stat_window: float = 1.0,
        stat_interval: int = 1,
        inverse_interval: int = 10,
        stagger_inverses: bool = True,
        position_stride: int = 1,
        bias: BiasMode = "joint",
        conv_factors: FactorKind = "expand",
        curvature: Curvature = "kfac",
        structure: Structure = "block-diagonal",
        kfoc_steps: int = 1,
        kfoc_aggregation: Aggregation = "running",
        compat: Compat = "none",
        ranks: Ranks | None = None,
        inverse_placement: InversePlacement = "broadcast",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"KFAC takes the model itself, an nn.Module, got {type(model).__name__}")
        check_range("lr", lr, 0.0, None)
        check_range("momentum", momentum, 0.0, 1.0, high_open=True)
        check_range("damping", damping, 0.0, None)
        if max_kl is not None and not max_kl > 0:
            raise ValueError(f"max_kl takes a number above 0, or None, got {max_kl}")
        check_choice("compat", compat, Compat)
        check_choice("inverse_placement", inverse_placement, InversePlacement)
        pace = Pace(
            stat_decay=stat_decay,
            stat_window=stat_window,
            stat_interval=stat_interval,
            inverse_interval=inverse_interval,
            position_stride=position_stride,
            stagger_inverses=stagger_inverses,
        )
        choice = BlockChoice(
            curvature=curvature,
            structure=structure,
            damping_mode=damping_mode,
            bias=bias,
            conv_factors=conv_factors,
            kfoc_steps=kfoc_steps,
            kfoc_aggregation=kfoc_aggregation,
        )
        if compat == "baselines" and damping_mode != "exact":
            raise ValueError("compat='baselines' needs damping_mode='exact', as in the published code")
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        check_precision(trainable)
        defaults = {"lr": lr, "max_kl": max_kl, "momentum": momentum, "damping": damping}
        self._own = {id(parameter) for parameter in trainable}
        super().__init__(trainable, defaults)
        self.compat = compat
        self.ranks = ranks
        self.estimate = FisherEstimate(model, choice, pace, ranks, inverse_placement)
        if self.estimate.plain:
            names = ", ".join(self.estimate.plain)
            warnings.warn(f"K-FAC cannot factor {names}; these parameters get their plain gradient", stacklevel=2)
        self._device = trainable[0].device
        zero = torch.zeros((), dtype=trainable[0].dtype, device=self._device)
        self._named: set[str] = set()  # units without curvature that a warning has named
        self._warned = False  # of a step without any curvature
        self.skipped: Tensor = zero.clone()
        self.scale: Tensor = zero.clone()
        self._last = AppliedStep(zero)
        self._momentum = Momentum(self.state, len(self.units), zero)
        self.rows = GradientRows(self.units if ranks is None else [])  # sums over ranks are of whole gradients

    @property
    def units(self) -> list[Unit]:
        """A block each, with the parameters that it treats."""
        return self.estimate.units

    @property
    def steps(self) -> int:
        """Steps made so far, which the intervals go by."""
        return self.estimate.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self.estimate.steps = steps

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Give some of the model's parameters, taken out of another group before, settings of their own.

        Raises:
            ValueError: a parameter from elsewhere, which would have no curvature.
        """
        super().add_param_group(param_group)
        if any(id(parameter) not in self._own for parameter in self.param_groups[-1]["params"]):
            del self.param_groups[-1]
            raise ValueError("KFAC treats the parameters of its model; build a new one for a model with more of them")

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "KFAC belongs to its model; copy the model, build a KFAC for it and load this one's state_dict()"
        )

    # --- statistics --------------------------------------------------------------------------------------------

    @property
    def statistics_due(self) -> bool:
        """Whether this step's statistics are wanted (every `stat_interval` steps)."""
        return self.estimate.due

    def capture(self) -> contextlib.AbstractContextManager[None]:
        """Record the forward passes made inside, for the next `update_statistics`; records nothing when none is due.

        What an earlier capture recorded and no `update_statistics` has used is forgotten: all that one metric is of
        belongs into one capture. Only calls of the model's modules are seen, no `torch.nn.functional` of its weights.

        Raises:
            RuntimeError: entered a second time before it was left.
        """
        return self.estimate.capture()

    def update_statistics(
        self, metric: Metric, weights: Tensor | None = None, places: tuple[int, ...] | None = None
    ) -> None:
        """Add the captured batch to the running factors; does nothing in a step whose statistics are not due.

        Back-propagates the metric's losses to the layers' outputs only, and keeps the graph for the training loss.
        Several calls before one step are parts of one batch and count alike.

        Args:
            metric: what to estimate, built from the outputs of the captured forward passes.
            weights: (N,) non-negative weights of the examples; a row of weight 0 has no influence whatever it holds.
            places: of the examples in the whole batch, where other ranks hold the rest of it, so that each keeps the
                grid of positions that `position_stride` gives it there; of several parts before one step they count on.
                None counts this rank's examples.

        Raises:
            TypeError: it is no metric.
            RuntimeError: nothing was captured, or the metric does not come from what was.
            ValueError: a layer was called without an axis of examples.
        """
        with torch.autocast(self._device.type, enabled=False):
            self.estimate.update(metric, weights, places)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, those that were left as rows included."""
        super().zero_grad(set_to_none)
        self.rows.clear()

    # --- the step ----------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Precondition, average, rescale and apply the gradients in `p.grad`.

        A batch with a non-finite gradient, or one so large that its step overflows, moves nothing, leaves the momentum
        finite and is counted in `skipped`. After the step `kl_predicted` is the KL of the change really applied and
        `scale` the trust region's factor η / lr (0-d).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with record_function("kfac::step"), torch.autocast(self._device.type, enabled=False):
            self._step()
        return loss

    def _step(self) -> None:
        if not (self.estimate.asked or self._warned):
            self._warned = True
            warnings.warn(
                "KFAC.step before any update_statistics: without curvature the step follows the plain gradient",
                stacklevel=5,
            )
        self.advance()
        proposals, usable = self._propose()
        if not proposals:
            self.scale = torch.zeros_like(self.scale)
            return
        decay, max_kl = self.param_groups[0]["momentum"], self.param_groups[0]["max_kl"]
        if self.compat == "baselines":
            scale = torch.where(usable, baselines_scale(slope(proposals), max_kl), 0.0)
            baselines_step(proposals, scale, self._last, self._momentum, decay)
        else:
            scale = natural_step(proposals, usable, self._last, self._momentum, decay, max_kl)
        self.scale = scale
        self.skipped += scale == 0

    @torch.no_grad()
    def advance(self) -> None:
        """Refresh the inverses that are due and count a step, before a step of one's own by `natural_gradient`."""
        with record_function("kfac::factors"):
            self.estimate.settle()
        with record_function("kfac::inverses"), torch.autocast(self._device.type, enabled=False):
            self._refresh_due()
        self._last = AppliedStep(self.scale)
        self.steps += 1

    @torch.no_grad()
    def natural_gradient(self) -> dict[Tensor, Tensor]:
        """(F + λ)⁻¹ g of the gradients in `p.grad`, by parameter; moves and counts nothing.

        All zero where a gradient is not finite.
        """
        self.estimate.settle()
        with torch.autocast(self._device.type, enabled=False):
            proposals, _ = self._propose()
        return {
            parameter: direction.clone()
            for proposal in proposals
            for parameter, direction in zip(proposal.unit.parameters, proposal.directions, strict=True)
            if parameter.grad is not None or self.rows.has(proposal.unit)
        }

    def _propose(self) -> tuple[list[Proposal], Tensor]:
        """What this step could do to each unit with a gradient, and whether it may move anything (0-d bool)."""
        active = with_gradient(self.units, self.rows)
        if not active:
            return [], torch.zeros_like(self.scale, dtype=torch.bool)
        self._name_uninformed([unit for _, unit in active])
        return propose(active, self.rows, self._groups(), self.estimate.directions, like=self.scale)

    def _name_uninformed(self, active: list[Unit]) -> None:
        names = [unit.name for unit in active if unit.block.missing == "statistics" and unit.name not in self._named]
        if names and self.estimate.counted >= 0:
            self._named.update(names)
            warnings.warn(
                f"{', '.join(names)}: the loss reaches these parameters, and no captured call of their modules did the "
                "metric's losses reach: they follow the plain gradient until one does",
                stacklevel=7,
            )

    @property
    @torch.no_grad()
    def kl_predicted(self) -> Tensor:
        """`1/2 sᵀ F s` of the change s that the last step applied, F undamped: nats, 0-d.

        With `compat="baselines"`, or without `max_kl`, no step needs this number, and it is computed when it is first
        read; read it before the next `update_statistics`, or it speaks of the newer curvature.
        """
        return self._last.kl_predicted

    @torch.no_grad()
    def contract(self, factor: Tensor, *, skips: bool = True) -> None:
        """Take back a part of the last step, so that `factor` times it remains; 0 restores the parameters to the bit.

        For control by a measured KL, which is about quadratic in the length of the step: no second preconditioning
        and no host read. The momentum is shortened with the step, for what it averages are the steps really made:
        otherwise one batch whose step came out a thousand times too long rules the ten that follow.

        Args:
            factor: 0-d, 0 to 1; NaN counts as 0.
            skips: whether a step of which nothing is left counts as skipped.
        """
        if looks_are_free(factor) and factor == 1:
            return
        factor = torch.where(factor > 0, factor, 0.0).to(self.scale)
        self._last.contract(factor)
        self._momentum.shorten(self._last.parameters, factor)
        if skips:
            self.skipped += (self.scale > 0) & (factor == 0)
        self.scale = self.scale * factor

    def _groups(self) -> dict[int, dict[str, Any]]:
        return {id(parameter): group for group in self.param_groups for parameter in group["params"]}

    def refresh(self) -> None:
        """Decompose every block now, with the damping that `param_groups` holds."""
        self.estimate.refresh(self.units, self._damping_of())

    def _refresh_due(self) -> list[Unit]:
        """Decompose what is due; returns those units."""
        return self.estimate.refresh_due(self._damping_of())

    def _damping_of(self) -> Callable[[Unit], Damping]:
        group_of = self._groups()
        return lambda unit: group_of[id(unit.parameters[0])]["damping"]

    # --- persistence -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step needs: momentum, factors with their masses, inverses in use, phases and counters.

        A copy: later steps do not change it.
        """
        state = super().state_dict()
        state["curvature"] = {
            **self.estimate.state_dict(),
            "momentum_mass": self._momentum.mass,
            "skipped": self.skipped,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; the next step is then equal to the bit.

        Raises:
            ValueError: it is another optimizer's, or belongs to a model with other parameters or another damping mode.
        """
        if "curvature" not in state_dict:
            raise ValueError("this is no state of KFAC: it holds no curvature")
        curvature = state_dict["curvature"]
        self.estimate.check(curvature)
        super().load_state_dict(copy.deepcopy({key: value for key, value in state_dict.items() if key != "curvature"}))
        self.estimate.load_state_dict(curvature)
        self.scale = torch.zeros_like(self.scale)
        self._last = AppliedStep(self.scale)  # the step before belongs to other weights
        self._momentum = Momentum(self.state, len(self.units), self.scale)  # torch replaces `state`
        self._momentum.mass = curvature["momentum_mass"].to(self.scale, copy=True)
        self.skipped = curvature["skipped"].to(self.scale, copy=True)
