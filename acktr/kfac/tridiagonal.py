"""The block-tridiagonal inverse of Martens & Grosse 2015 (arXiv:1503.05671, section 4.3 and appendix B).

The layers' gradients are modelled as a Gaussian chain from the last layer to the first: given the next layer's, the
gradient of a layer is `Ψ` times it plus a remainder of covariance `Σ`. The inverse of the Fisher that this implies is
zero but for neighbouring layers, and the Fisher equals the Kronecker-factored one on all neighbouring blocks:

    Ψ_l = (A_{l,l+1} A_{l+1}⁻¹) ⊗ (G_{l,l+1} G_{l+1}⁻¹),    Σ_l = A_l ⊗ G_l - C_l ⊗ D_l,
    C_l = A_{l,l+1} A_{l+1}⁻¹ A_{l,l+1}ᵀ,    D_l = G_{l,l+1} G_{l+1}⁻¹ G_{l,l+1}ᵀ.

Layers are counted from the input. Diagonal factors carry factored damping, those between layers none.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from acktr.kfac.blocks import Damping
from acktr.kfac.kronecker import factored_damping
from acktr.kfac.products import product
from acktr.kfac.solvers import eigenbasis

Matrices = Sequence[Tensor]
"""One (1, o_l, i_l) matrix for each layer of the chain."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainFactors:
    """Running factors of a chain of L layers, undamped, each with a leading axis of length 1.

    Attributes:
        inputs: A_l, (1, i_l, i_l), L of them.
        outputs: G_l, (1, o_l, o_l), L of them.
        inputs_between: A_{l,l+1} = E[a_l a_{l+1}ᵀ], (1, i_l, i_{l+1}), L - 1 of them.
        outputs_between: G_{l,l+1} = E[g_l g_{l+1}ᵀ], (1, o_l, o_{l+1}), L - 1 of them.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    inputs_between: list[Tensor]
    outputs_between: list[Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TridiagonalInverse:
    """A decomposed chain: what applying the inverse takes.

    Attributes:
        regressions_a: `A_{l,l+1} A_{l+1}⁻¹`, L - 1 of them.
        regressions_g: `G_{l,l+1} G_{l+1}⁻¹`, L - 1 of them.
        whitened_a: K_A with `K_Aᵀ A_l K_A = I` and `K_Aᵀ C_l K_A = diag(s_A)`, L - 1 of them.
        whitened_g: the same of the outputs.
        scales: `1 / (1 - s_G s_Aᵀ)`, (1, o_l, i_l), L - 1 of them.
        last: A_L⁻¹ and G_L⁻¹.
    """

    regressions_a: list[Tensor]
    regressions_g: list[Tensor]
    whitened_a: list[Tensor]
    whitened_g: list[Tensor]
    scales: list[Tensor]
    last: list[Tensor]

    def apply(self, gradients: Matrices) -> list[Tensor]:
        """F̂⁻¹ of the gradients, layer by layer."""
        between = range(len(gradients) - 1)
        parts = [gradients[layer] - self._predicted(layer, gradients[layer + 1]) for layer in between]
        parts = [self._remainder_inverse(layer, part) for layer, part in enumerate(parts)]
        parts.append(product(product(self.last[1], gradients[-1]), self.last[0]))
        back = [parts[layer + 1] - self._transposed(layer, parts[layer]) for layer in between]
        return [parts[0], *back]

    def multiply(self, directions: Matrices, factors: ChainFactors) -> list[Tensor]:
        """F̂ of the directions without damping in what the layers' own gradients amount to.

        The regressions keep the damping that makes them defined. They are then too short, never too long, so the
        remainders' covariances `A ⊗ G - (Ψ_A A' Ψ_Aᵀ) ⊗ (Ψ_G G' Ψ_Gᵀ)` stay positive semi-definite, and so does F̂,
        whose diagonal blocks are exactly A_l ⊗ G_l.

        That holds for the factors that were decomposed. With later ones the diagonal blocks are theirs, and F̂ may be
        indefinite by as much as they have moved. It serves the trust region better all the same: F̂ of the older
        factors let steps of 70 times the KL pass where the inputs had changed.

        Args:
            directions: layer by layer.
            factors: undamped.
        """
        between = range(len(directions) - 1)
        parts = [directions[0]]
        for layer in between:
            parts.append(directions[layer + 1] + self._transposed(layer, parts[layer]))
        found = [
            product(product(G, part), A) for G, part, A in zip(factors.outputs, parts, factors.inputs, strict=True)
        ]
        for layer in between:
            explained_a = _sandwiched(self.regressions_a[layer], factors.inputs[layer + 1])
            explained_g = _sandwiched(self.regressions_g[layer], factors.outputs[layer + 1])
            found[layer] = found[layer] - product(product(explained_g, parts[layer]), explained_a)
        for layer in reversed(between):
            found[layer] = found[layer] + self._predicted(layer, found[layer + 1])
        return found

    def _predicted(self, layer: int, following: Tensor) -> Tensor:
        return product(product(self.regressions_g[layer], following), self.regressions_a[layer].mT)

    def _transposed(self, layer: int, part: Tensor) -> Tensor:
        return product(product(self.regressions_g[layer].mT, part), self.regressions_a[layer])

    def _remainder_inverse(self, layer: int, part: Tensor) -> Tensor:
        left, right = self.whitened_g[layer], self.whitened_a[layer]
        turned = product(product(left.mT, part), right) * self.scales[layer]
        return product(product(left, turned), right.mT)


def decompose(factors: ChainFactors, damping: Damping) -> tuple[TridiagonalInverse | None, int]:
    """Prepare the inverse of a chain.

    Args:
        factors: undamped.
        damping: lambda on each block, split over its two factors by the trace norm.

    Returns:
        The inverse, or None when a decomposition defied the guard ladder; and the number of rungs that failed.
    """
    retries = 0
    inverses: list[tuple[Tensor, Tensor]] = []
    roots: list[tuple[Tensor, Tensor]] = []
    for A, G in zip(factors.inputs, factors.outputs, strict=True):
        pair = []
        for factor, added in zip((A, G), factored_damping(A, G, damping), strict=True):
            basis, failed = eigenbasis(factor)
            retries += failed
            if basis is None:
                return None, retries
            values, vectors = basis
            damped = (values + added[:, None]).clamp(min=torch.finfo(values.dtype).tiny)
            pair.append((_scaled(vectors, 1 / damped), _scaled(vectors, damped.rsqrt())))
        inverses.append((pair[0][0], pair[1][0]))
        roots.append((pair[0][1], pair[1][1]))
    regressions: tuple[list[Tensor], list[Tensor]] = ([], [])
    whitened: tuple[list[Tensor], list[Tensor]] = ([], [])
    scales = []
    for layer, between in enumerate(zip(factors.inputs_between, factors.outputs_between, strict=True)):
        correlations = []
        for side, cross in enumerate(between):
            regression = product(cross, inverses[layer + 1][side])
            root = roots[layer][side]
            explained = product(product(product(root, regression), cross.mT), root)
            basis, failed = eigenbasis((explained + explained.mT) / 2)
            retries += failed
            if basis is None:
                return None, retries
            regressions[side].append(regression)
            whitened[side].append(product(root, basis[1]))
            correlations.append(basis[0].clamp(max=1))
        remaining = 1 - correlations[1][:, :, None] * correlations[0][:, None, :]
        scales.append(1 / remaining.clamp(min=torch.finfo(remaining.dtype).eps))
    return (
        TridiagonalInverse(
            regressions_a=regressions[0],
            regressions_g=regressions[1],
            whitened_a=whitened[0],
            whitened_g=whitened[1],
            scales=scales,
            last=list(inverses[-1]),
        ),
        retries,
    )


def _scaled(vectors: Tensor, values: Tensor) -> Tensor:
    """Q diag(values) Qᵀ."""
    return product(vectors * values[:, None, :], vectors.mT)


def _sandwiched(outer: Tensor, inner: Tensor) -> Tensor:
    """R M Rᵀ."""
    return product(product(outer, inner), outer.mT)
