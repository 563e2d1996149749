"""The part of every batch that this process holds: some of the run's environments, at all their steps.

One process holds all of them. Several hold neighbouring shares, and what concerns the whole batch (means, moments, the
largest advantages) is added up over them, so that a run is the same however its environments are spread.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from acktr.kfac import weighted_mean
from acktr.kfac.distributed import Ranks
from acktr.kfac.draws import Draws, Source


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which of the environments are here, and how to come by sums over all of them.

    Attributes:
        num_envs: N of the whole run.
        first: global index of the first environment here.
        count: number of environments here, neighbours of each other.
        ranks: that add up what lies on the policy's device; None where everything is here.
        hosts: that add up what lies in the host's memory, for whoever makes the rollouts; None likewise.
    """

    num_envs: int
    first: int
    count: int
    ranks: Ranks | None = None
    hosts: Ranks | None = None

    @classmethod
    def whole(cls, num_envs: int) -> "Part":
        """All environments."""
        return cls(num_envs=num_envs, first=0, count=num_envs)

    @classmethod
    def share(cls, num_envs: int, ranks: Ranks, hosts: Ranks) -> "Part":
        """This rank's share; shares differ by one environment at most."""
        first, end = (num_envs * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
        return cls(num_envs=num_envs, first=first, count=end - first, ranks=ranks, hosts=hosts)

    @property
    def is_whole(self) -> bool:
        """Whether everything is here."""
        return self.ranks is None

    # --- rows ----------------------------------------------------------------------------------------------------

    def among(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Those of some rows of the whole batch that are here.

        Args:
            rows: indices in the whole batch, (M), time-major.

        Returns:
            Their positions among `rows`, and their indices in this process's part of the batch.
        """
        environment = rows % self.num_envs
        positions = ((environment >= self.first) & (environment < self.first + self.count)).nonzero().squeeze(1)
        chosen = rows[positions]
        return positions, chosen // self.num_envs * self.count + chosen % self.num_envs - self.first

    def everywhere(self, values: Tensor) -> Tensor:
        """Values of the whole batch, (M,) in its order, of which (m,) are here."""
        if self.ranks is None:
            return values
        steps = values.shape[0] // self.count
        whole = values.new_zeros(steps, self.num_envs)
        whole[:, self.first : self.first + self.count] = values.view(steps, self.count)
        (total,) = self.ranks.add_up([whole], kind="figures")
        return total.flatten()

    def draws(self, generator: torch.Generator, rows: slice | Tensor, whole: int) -> Source:
        """Random numbers for these rows of so many, the same as if one process drew them for all."""
        return generator if self.ranks is None else Draws(generator, rows, whole)

    # --- sums ----------------------------------------------------------------------------------------------------

    def add_up(self, tensors: Sequence[Tensor], *, kind: str = "figures") -> list[Tensor]:
        """Sums of tensors over all processes."""
        return list(tensors) if self.ranks is None else self.ranks.add_up(tensors, kind=kind)

    def mean(self, values: Tensor, weights: Tensor | None) -> Tensor:
        """Mean by weight over the rows of all processes, 0-d; 0 where all weights are 0."""
        return self.means([values], weights)[0]

    def means(self, columns: Sequence[Tensor], weights: Tensor | None) -> list[Tensor]:
        """Means of several numbers of the same rows.

        Args:
            columns: (n,) each, of the rows here; values of weight 0 do not enter, whatever they are.
            weights: (n,) or None for ones.

        Returns:
            0-d each, in the precision of the column; 0 where all weights are 0.
        """
        return self._means_and_weight(columns, weights)[0]

    def means_or_nan(self, columns: Sequence[Tensor], weights: Tensor | None) -> list[Tensor]:
        """`means`, with NaN where all weights are 0."""
        means, weight = self._means_and_weight(columns, weights)
        return [torch.where(weight > 0, mean, torch.nan) for mean in means]

    def _means_and_weight(self, columns: Sequence[Tensor], weights: Tensor | None) -> tuple[list[Tensor], Tensor]:
        number = columns[0].new_full((), float(len(columns[0]))) if weights is None else weights.sum()
        if self.ranks is None:
            return [weighted_mean(column, weights) for column in columns], number
        precision = columns[0].dtype
        for column in columns:
            precision = torch.promote_types(precision, column.dtype)
        sums = [weighted_sum(column, weights).to(precision) for column in columns]
        (total,) = self.ranks.add_up([torch.stack([*sums, number.to(precision)])], kind="figures")
        found = total[:-1] / total[-1].clamp(min=torch.finfo(precision).tiny)
        return [mean.to(column) for mean, column in zip(found, columns, strict=True)], total[-1]


def weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    """Sum of (n,) by weight, 0-d; values of weight 0 do not enter, whatever they are."""
    if weights is None:
        return values.sum()
    weights = weights.to(values.dtype)
    return (torch.where(weights > 0, values, values.new_zeros(())) * weights).sum()
