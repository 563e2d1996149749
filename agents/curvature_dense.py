"""The exact Fisher of some units of every layer as a matrix, its Kronecker-factored approximation, and their inverses.

These are what figures 2 and 3 of Martens & Grosse 2015 (arXiv:1503.05671) show. A layer's matrix W̄ = (W b) is flattened
row by row, so that the weights into one unit stand together and a block is `G_ij ⊗ A_ij`. Taking some rows and columns
of W̄ takes rows and columns of the blocks, exact and factored alike.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from acktr.agents.curvature_capture import Captured
from acktr.errors import UserError
from acktr.kfac.kronecker import factored_damping
from acktr.kfac.layers import Affine, gradient_rows, input_rows

UNITS = 20
"""Units and inputs of each layer that are taken unless told: the width of the network in the paper's figures."""

LARGEST = 3000
"""Parameters of the matrices: one takes 72 MB in float64, and half a second to invert."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The rows and columns of a layer's matrix that are taken.

    Attributes:
        layer: its name.
        module: the layer.
        rows: indices of outputs.
        columns: indices of inputs, for a convolution of entries of the patch.
    """

    layer: str
    module: Affine
    rows: Tensor
    columns: Tensor

    @property
    def width(self) -> int:
        """Columns with that of the bias."""
        return len(self.columns) + (self.module.bias is not None)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.rows) * self.width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """The exact Fisher of some parameters, and what K-FAC makes of it; d parameters of L layers.

    Attributes:
        parts: which parameters, in the order of the matrices.
        exact: (d, d) F, nothing sampled but the states.
        inputs: (Σ columns, Σ columns), `A_ij = E[a_i a_jᵀ]` as blocks; a of a convolution is the mean over positions.
        outputs: (Σ rows, Σ rows), `G_ij = E[g_i g_jᵀ]` as blocks; g of a convolution is the sum over positions.
    """

    parts: Sequence[Part]
    exact: Tensor
    inputs: Tensor
    outputs: Tensor

    @property
    def sizes(self) -> list[int]:
        """Parameters of each layer."""
        return [part.size for part in self.parts]

    def factors(self, one: int, other: int) -> tuple[Tensor, Tensor]:
        """A_ij and G_ij of two layers by their numbers."""
        columns = ranges([part.width for part in self.parts])
        rows = ranges([len(part.rows) for part in self.parts])
        return self.inputs[columns[one], columns[other]], self.outputs[rows[one], rows[other]]

    def factored(self, damping: float = 0.0) -> Tensor:
        """(d, d) F̃, whose blocks are `G_ij ⊗ A_ij`: a Khatri-Rao product (section 3).

        Args:
            damping: lambda, on the diagonal blocks by the factored rule (section 6.3).
        """
        count = len(self.parts)
        return torch.cat([torch.cat([self._block(i, j, damping) for j in range(count)], 1) for i in range(count)])

    def _block(self, one: int, other: int, damping: float) -> Tensor:
        A, G = self.factors(one, other)
        if one == other and damping > 0:
            for_inputs, for_outputs = factored_damping(A.unsqueeze(0), G.unsqueeze(0), damping)
            A = A + for_inputs * torch.eye(len(A), dtype=A.dtype)
            G = G + for_outputs * torch.eye(len(G), dtype=G.dtype)
        return torch.kron(G.contiguous(), A.contiguous())


def choose_parts(layers: Mapping[str, Affine], units: int | None) -> list[Part]:
    """The same number of units from each layer, evenly spread; what is taken of one is an input of the next.

    Args:
        layers: by name.
        units: of each layer, and inputs as many; None takes `UNITS`, or as many as fit.

    Raises:
        UserError: more parameters than `LARGEST`.
    """
    if units is None:
        fitting = (count for count in range(UNITS, 1, -1) if _total(_parts(layers, count)) <= LARGEST)
        return _parts(layers, next(fitting, 1))
    parts = _parts(layers, units)
    if _total(parts) > LARGEST:
        most = next((count for count in range(units, 1, -1) if _total(_parts(layers, count)) <= LARGEST), 1)
        raise UserError(
            f"--units {units} would make matrices of {_total(parts):,} parameters, above the {LARGEST:,} that are "
            f"inverted here; use at most --units {most}"
        )
    return parts


@torch.no_grad()
def dense_fisher(captured: Captured, parts: Sequence[Part]) -> Dense:
    """Sum up the exact Fisher and the factors over the states.

    Args:
        captured: a forward pass with the exact metric.
        parts: which parameters.
    """
    patches = [_input_rows(part, captured.inputs[part.layer]) for part in parts]
    means = torch.cat([rows.mean(1) for rows in patches], dim=1)
    sizes = [part.size for part in parts]
    exact = means.new_zeros(sum(sizes), sum(sizes))
    outputs = means.new_zeros(*[sum(len(part.rows) for part in parts)] * 2)
    for reached in captured.passes():
        gradients, sums = [], []
        for part, inputs in zip(parts, patches, strict=True):
            if part.layer in reached:
                rows = gradient_rows(part.module, reached[part.layer][1]).flatten(2)[..., part.rows]
                gradients.append((rows.mT @ inputs).flatten(1))
                sums.append(rows.sum(1))
            else:
                gradients.append(means.new_zeros(captured.examples, part.size))
                sums.append(means.new_zeros(captured.examples, len(part.rows)))
        whole = torch.cat(gradients, dim=1)
        exact.addmm_(whole.T, whole, alpha=1 / captured.examples)
        together = torch.cat(sums, dim=1)
        outputs.addmm_(together.T, together, alpha=1 / captured.examples)
    return Dense(parts=parts, exact=exact, inputs=means.T @ means / captured.examples, outputs=outputs)


def inverses(dense: Dense, damping: float, chain: Sequence[Sequence[str]] | None) -> dict[str, Tensor]:
    """Damped inverses of the exact Fisher and of what stands for it, each (d, d).

    Args:
        dense: the matrices.
        damping: lambda: on the diagonal of the exact Fisher, and by the factored rule on the diagonal blocks of F̃,
            which all others start from.
        chain: names of the layers in the order of the matrices, those with a common input together; None for layers
            that form no chain.

    Returns:
        "exact", "factored" (of F̃ as a whole), "block-diagonal" and, where there is a chain, "block-tridiagonal".
    """
    identity = torch.eye(len(dense.exact), dtype=dense.exact.dtype)
    factored = dense.factored(damping)
    found = {
        "exact": _inverse(dense.exact + damping * identity),
        "factored": _inverse(factored),
        "block-diagonal": _block_diagonal([_inverse(factored[at, at]) for at in ranges(dense.sizes)]),
    }
    if chain is not None:
        found["block-tridiagonal"] = tridiagonal_inverse(factored, links(dense, chain))
    return found


def links(dense: Dense, chain: Sequence[Sequence[str]]) -> list[int]:
    """Parameters of each link of a chain of layers."""
    sizes = {part.layer: part.size for part in dense.parts}
    return [sum(sizes[layer] for layer in link) for link in chain]


def tridiagonal_inverse(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """Inverse of the matrix that equals a given one on neighbouring blocks and whose inverse is zero beyond them.

    It is `Ξᵀ Λ Ξ` with I on the diagonal of Ξ and `-Ψ` above it (Martens & Grosse 2015, section 4.3).

    Args:
        matrix: (d, d) symmetric positive definite.
        sizes: of the blocks.
    """
    at = ranges(sizes)
    regression = torch.eye(len(matrix), dtype=matrix.dtype)
    precisions = []
    for here, following in itertools.pairwise(at):
        across = matrix[here, following]
        slope = across @ _inverse(matrix[following, following])
        regression[here, following] = -slope
        precisions.append(_inverse(matrix[here, here] - slope @ across.T))
    precisions.append(_inverse(matrix[at[-1], at[-1]]))
    return regression.T @ _block_diagonal(precisions) @ regression


def block_averages(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """(L, L): mean absolute value of the entries of each block (figure 3)."""
    at = ranges(sizes)
    return torch.stack([torch.stack([matrix[one, other].abs().mean() for other in at]) for one in at])


def scaled(matrix: Tensor, reference: Tensor, sizes: Sequence[int]) -> Tensor:
    """`D M D` (d, d) with a diagonal D, one number for each layer, so that layers of different size can be compared.

    Args:
        matrix: M, (d, d).
        reference: (d, d), the mean of whose own diagonal becomes 1 in each layer.
        sizes: of the layers, parameters.
    """
    diagonal = reference.diagonal()
    means = [diagonal[at].mean().clamp(min=torch.finfo(diagonal.dtype).tiny) for at in ranges(sizes)]
    factors = torch.cat([mean.rsqrt().expand(size) for mean, size in zip(means, sizes, strict=True)])
    return factors[:, None] * matrix * factors


def relative_error(matrix: Tensor, reference: Tensor) -> float | None:
    """Frobenius norm of the difference over that of the reference; None where that is 0."""
    norm = float(reference.norm())
    return float((matrix - reference).norm()) / norm if norm > 0 else None


def _parts(layers: Mapping[str, Affine], units: int) -> list[Part]:
    return [
        Part(
            layer=name,
            module=module,
            rows=_spread(module.weight.shape[0], units),
            columns=_spread(module.weight[0].numel(), units),
        )
        for name, module in layers.items()
    ]


def _total(parts: Sequence[Part]) -> int:
    return sum(part.size for part in parts)


def _spread(number: int, most: int) -> Tensor:
    """At most so many of the first `number` indices, evenly spread."""
    return torch.linspace(0, number - 1, min(number, most), dtype=torch.float64).round().long()


def _input_rows(part: Part, inputs: Tensor) -> Tensor:
    """(N, T, columns), with the 1 of the bias."""
    rows = torch.cat([found.flatten(2)[..., part.columns] for _, found in input_rows(part.module, inputs)])
    if part.module.bias is None:
        return rows
    return torch.cat((rows, rows.new_ones(*rows.shape[:-1], 1)), dim=-1)


def ranges(sizes: Sequence[int]) -> list[slice]:
    """Where blocks of these sizes stand, one behind the other."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    found: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return found


def _inverse(matrix: Tensor) -> Tensor:
    """Of a symmetric positive definite matrix, symmetric to the bit."""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))
