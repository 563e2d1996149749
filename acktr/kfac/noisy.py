"""Noisy K-FAC: natural gradient as variational inference (Zhang et al. 2018, arXiv:1712.02390).

The posterior is a Gaussian around the parameters whose covariance the curvature gives. Gradient and statistics are
taken at a draw from it; the step moves its mean, and each refresh of an inverse its covariance.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from acktr.kfac.checks import check_range
from acktr.kfac.optimizer import KFAC
from acktr.kfac.posterior import Covariance, Objective, covariance_of
from acktr.kfac.small_blocks import IdentityBlock
from acktr.kfac.units import Unit


class NoisyKFAC(KFAC):
    """K-FAC that keeps a Gaussian posterior over the parameters, whose mean they are.

    It maximises `E_q[log p(data)] - λ KL(q ‖ N(0, η))`. With N examples, c = λ / N and γ_in = c / η the posterior is
    `N(M, c (F + γ_in)⁻¹)` block by block, and the mean moves along `(F + γ_in + γ_ex)⁻¹ (g + γ_in M)`, g being the
    gradient of the mean negative log-likelihood at a draw::

        optimizer = NoisyKFAC(model, examples=len(inputs), lr=0.05, max_kl=None)
        optimizer.zero_grad()
        with optimizer.sampled():
            with optimizer.capture():
                values = model(x)
            optimizer.update_statistics(GaussNewton(values=values, sigma=sigma, kind="exact"))
            (0.5 * ((values - y) / sigma) ** 2).mean().backward()
        optimizer.step()

    The form of the covariance follows `curvature`: "kfac" and "kfoc" give a matrix-variate Gaussian per weight in
    damping mode "factored" and the eigenvectors of one with exactly damped eigenvalues in mode "exact"; "ekfac" and
    "ekfoc" the eigenvalue-corrected Gaussian (Bae et al. 2018, arXiv:1811.12565) in either mode; "diagonal" a mean
    field; "full", and the full blocks of biases, normalisation layers and small standalone parameters, a dense one.
    The factored form is the narrowest: it is damped more than γ_in asks for. F is what the metric estimates, so it
    must be the likelihood's: a `GaussNewton` with the noise's deviation, the `Fisher` of the outputs' distribution.

    A parameter without statistics or before its first refresh has F = I, so `N(M, c / (1 + γ_in))`: narrower than the
    prior and than 1 / sqrt(N / λ). One that K-FAC cannot factor, which a warning names, is a point estimate: drawn as
    it is, pulled to 0 like the others, and left out of the KL.

    Args:
        model: the network; its parameters are the posterior's mean.
        examples: N, the number of examples that the whole data set has.
        kl_weight: λ (0.1 to 1); 1 is the Bayesian posterior, less a colder one.
        prior_variance: η of the prior N(0, η) on every parameter (0.1 to 10).
        extrinsic_damping: γ_ex, damping of the mean's step alone (0 to 0.1).
        generator: source of the draws, on the parameters' device; None takes torch's default one. Its state is not in
            `state_dict`.
        options: of `KFAC`, other than `damping`, and block-diagonal.

    Raises:
        TypeError: `model` is no module, or an option that KFAC does not know.
        ValueError: a setting out of range, or one of KFAC's errors.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        examples: int,
        kl_weight: float = 1.0,
        prior_variance: float = 1.0,
        extrinsic_damping: float = 0.0,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        self.objective = Objective(examples=examples, kl_weight=kl_weight, prior_variance=prior_variance)
        check_range("extrinsic_damping", extrinsic_damping, 0.0, None)
        if "damping" in options:
            raise ValueError("the damping follows from examples, kl_weight and prior_variance: use extrinsic_damping")
        if options.get("structure", "block-diagonal") != "block-diagonal":
            raise ValueError("a posterior needs the structure 'block-diagonal': no draw across layers is known")
        if options.get("inverse_placement", "broadcast") != "broadcast":
            raise ValueError("a posterior needs inverse_placement 'broadcast': all ranks draw from all of it")
        super().__init__(model, damping=self.objective.damping + extrinsic_damping, **options)
        self.generator = generator
        self.posterior: dict[str, Covariance] = {}
        """Covariances by the name of their unit, as of the last refresh; draws and KL use them."""
        self._means: dict[int, Tensor] | None = None  # while a draw stands in their place
        self._deviations: list[Tensor] = []  # of the last draw

    # --- the posterior -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def sampled(self, *, again: bool = False) -> Iterator[None]:
        """Replace the parameters by a draw from the posterior, and put the mean back, to the bit, on leaving.

        Forward, backward and `update_statistics` of one batch all belong inside: autograd refuses a backward pass
        through parameters that have changed since. Several draws for one batch add up in the gradients and count as
        parts of one batch in the statistics; for predictions, average over a loop of draws.

        Args:
            again: take the deviation of the last draw once more, from wherever the mean is now.

        Raises:
            RuntimeError: entered a second time before it was left, or again before the first draw.
        """
        self._refuse_inside("a second sampled()")
        units = self._uncertain()
        if not again:
            with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                self._deviations = [part for unit in units for part in unit.split(self._draw(unit))]
        deviations = self._deviations
        if not deviations:
            raise RuntimeError("sampled(again=True) before any draw: enter sampled() first")
        parameters = [parameter for unit in units for parameter in unit.parameters]
        means = [parameter.detach().clone() for parameter in parameters]
        self._means = {id(parameter): mean for parameter, mean in zip(parameters, means, strict=True)}
        try:
            with torch.no_grad():
                for parameter, deviation in zip(parameters, deviations, strict=True):
                    parameter.add_(deviation)
            yield
        finally:
            self._means = None
            with torch.no_grad():
                for parameter, mean in zip(parameters, means, strict=True):
                    parameter.copy_(mean)

    @property
    def has_drawn(self) -> bool:
        """Whether there is a draw to take again."""
        return bool(self._deviations)

    @torch.no_grad()
    def kl_to_prior(self) -> Tensor:
        """KL of the posterior from the prior N(0, η) in nats, 0-d, from eigenvalues alone.

        The evidence lower bound of the data is `E_q[log p(data)]` less this, whatever `kl_weight` the posterior was
        trained with. With the covariances as of the last refresh, and of the mean even inside `sampled()`.
        """
        total = torch.zeros_like(self.scale)
        for unit in self._uncertain():
            mean = unit.matrix([self._mean(parameter) for parameter in unit.parameters])
            total += self.covariance(unit).kl_to_isotropic(mean, self.objective.prior_variance)
        return total

    def covariance(self, unit: Unit) -> Covariance:
        """That of one of `units`, as draws and KL use it.

        Raises:
            ValueError: a point estimate.
        """
        if isinstance(unit.block, IdentityBlock):
            raise ValueError(f"{unit.name} is a point estimate: K-FAC cannot factor it")
        found = self.posterior.get(unit.name)
        if found is None:
            prior_like = (self.objective.scale / (1 + self.objective.damping)) ** 0.5
            found = Covariance(deviations=torch.full_like(unit.matrix(unit.parameters).detach(), prior_like))
        return found

    def _uncertain(self) -> list[Unit]:
        return [unit for unit in self.units if not isinstance(unit.block, IdentityBlock)]

    def _draw(self, unit: Unit) -> Tensor:
        covariance = self.covariance(unit)
        like = covariance.deviations
        return covariance.colour(
            torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=self.generator)
        )

    def _mean(self, parameter: Tensor) -> Tensor:
        return parameter if self._means is None else self._means.get(id(parameter), parameter)

    def _refuse_inside(self, action: str) -> None:
        if self._means is not None:
            raise RuntimeError(f"{action} inside sampled(), where a draw stands in place of the mean: leave it before")

    # --- the step ----------------------------------------------------------------------------------------------

    def _step(self) -> None:
        self._refuse_inside("step")
        gradients = [(p, p.grad) for unit in self.units for p in unit.parameters if p.grad is not None]
        try:
            for parameter, gradient in gradients:
                parameter.grad = gradient.add(parameter, alpha=self.objective.damping)
            super()._step()
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient

    def refresh(self) -> None:
        """Decompose every block and renew every covariance now."""
        super().refresh()
        self._renew(self.units)

    def _refresh_due(self) -> list[Unit]:
        due = super()._refresh_due()
        self._renew(due)
        return due

    @torch.no_grad()
    def _renew(self, units: list[Unit]) -> None:
        for unit in units:
            if isinstance(unit.block, IdentityBlock):
                continue
            covariance, report = covariance_of(unit.block, unit.matrix(unit.parameters).shape, self.objective)
            if covariance is not None:
                self.posterior[unit.name] = covariance
            self.estimate.retry_count += report.retries
            self.estimate.stale_count += report.stale

    def contract(self, factor: Tensor, *, skips: bool = True) -> None:
        """See `KFAC`; refused inside `sampled()`."""
        self._refuse_inside("contract")
        super().contract(factor, skips=skips)

    # --- persistence -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """See `KFAC`; with the covariances in use. The generator's state is its owner's to keep."""
        state = super().state_dict()
        covariances = {name: copy.deepcopy(covariance.state_dict()) for name, covariance in self.posterior.items()}
        state["posterior"] = {"objective": dataclasses.asdict(self.objective), "covariances": covariances}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; the next draw, with the same state of the generator, and step are equal.

        Raises:
            ValueError: it is another optimizer's, or was made with another data set size, KL weight or prior.
            RuntimeError: called inside `sampled()`.
        """
        self._refuse_inside("load_state_dict")
        if "posterior" not in state_dict:
            raise ValueError("this is no state of NoisyKFAC: it holds no posterior")
        posterior = state_dict["posterior"]
        for name, value in dataclasses.asdict(self.objective).items():
            found = posterior["objective"][name]
            if found != value:
                raise ValueError(f"this state was made with {name} {found}, this optimizer has {value}")
        matrices = {unit.name: unit.matrix(unit.parameters).detach() for unit in self._uncertain()}
        if strange := sorted(set(posterior["covariances"]) - set(matrices)):
            raise ValueError(f"this state holds covariances of {strange}, the model has {sorted(matrices)}")
        covariances = {
            name: Covariance.from_state(found, matrices[name]) for name, found in posterior["covariances"].items()
        }
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "posterior"})
        self.posterior = covariances
