"""What thinned statistics and bfloat16 cost in fidelity: factors and steps beside those of unthinned statistics.

One training runs with the preset as shipped, and further K-FAC optimizers watch it: each takes statistics of the same
batches in its own way and never moves a parameter. The plain one takes all rows and positions of every batch in
float32; the others thin one thing each, and one does all that the preset does. Where statistics are sampled, all share
the draws, the rollout's actions and one noise of the values, so that thinning alone tells them apart. "other draws" is
as thorough as the plain one and draws anew: sampled statistics differ by that much anyhow, in G alone, for A does not
depend on the draws.

Compared are, at three times, the factors of each layer, in relative Frobenius distance to the plain ones, and what they
make of the batch's gradient with inverses of the same age: the natural gradient u, its cosine and its length beside the
plain one, and the loss |u - u_plain|² / |u_plain|² in the norm of the plain F. The memory of the factors is
`stat_window` of the updates so far, and the same for all, until `stat_decay` limits it: then factors with rarer
statistics reach further back. An update takes the observers some 3 s of one core.

    python benchmarks/fidelity.py --env BreakoutNoFrameskip-v4 --timesteps 100000 --json fidelity.json
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

if __name__ == "__main__":
    from acktr.process import tune

    tune()  # as `acktr train` does; before torch is imported

import torch
from arguments import change, count, in_one_line, natural, output
from contestants import make_trainer
from origin import commit, in_words, machine
from torch import Tensor
from torch.distributions import Normal

from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.forward_pass import rotating_part
from acktr.agents.learner import _build_kfac, _entropy_coef
from acktr.agents.losses import Policies, Values, policy_losses, value_loss
from acktr.agents.presets import resolve
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings, convert
from acktr.agents.trainer import Trainer
from acktr.agents.updates import UpdateReport
from acktr.errors import UserError
from acktr.kfac import Fisher, Joint
from acktr.kfac.kronecker import KroneckerBlock
from acktr.kfac.units import Unit

PLAIN, OTHER_DRAWS, SHIPPED = "plain", "other draws", "as shipped"
COMPARISONS = 3
"""Spread evenly over the time that is watched; the last one is at its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """How an observer takes statistics; the first three as the settings of that name.

    Attributes:
        position_stride: grid of the positions of convolutions.
        stat_fraction: of the rows of a batch.
        stat_interval: updates between two batches.
        precision: of the torso, "float32" or "bfloat16".
        recalls: take the layers' outputs from the rollout where it has kept them.
        redraws: draw outcomes anew in place of those that all others share.
    """

    position_stride: int = 1
    stat_fraction: float = 1.0
    stat_interval: int = 1
    precision: str = "float32"
    recalls: bool = False
    redraws: bool = False


def ways(settings: Settings) -> dict[str, Way]:
    """The plain way, and by name what the settings do to it: one thing at a time, and all together."""
    fast: dict[str, Any] = {
        f"positions, stride {settings.position_stride}": {"position_stride": settings.position_stride},
        f"rows, {settings.stat_fraction:g} of them": {"stat_fraction": settings.stat_fraction},
        f"updates, one of {settings.stat_interval}": {"stat_interval": settings.stat_interval},
        f"{settings.precision} torso": {"precision": settings.precision},
    }
    found = {PLAIN: Way(), OTHER_DRAWS: Way(redraws=True)}
    found |= {name: Way(**change) for name, change in fast.items() if Way(**change) != Way()}
    together = {key: value for change in fast.values() for key, value in change.items()}
    return {**found, SHIPPED: Way(**together, recalls=True)}


class Observer:
    """A K-FAC optimizer that sees the batches of a training and takes no step.

    Args:
        way: in which it takes statistics.
        trainer: the training; the observer goes on from its learner's count of steps, which intervals and memory go by.
        seed: of its own draws.
    """

    def __init__(self, way: Way, trainer: Trainer, *, seed: int) -> None:
        learner = learner_of(trainer)
        settings = dataclasses.replace(
            trainer.settings, position_stride=way.position_stride, stat_interval=way.stat_interval
        )
        self.way = way
        self.optimizer = _build_kfac(trainer.policy, settings, learner.region, generator=None)
        self.optimizer.steps = learner.optimizer.steps
        self._trainer = trainer
        self._turn = learner.turn
        self._generator = torch.Generator(trainer.device).manual_seed(seed)

    def observe(self, batch: Batch, noise: Tensor, sigma: Tensor | float) -> None:
        """Take statistics of a batch, where they are due, and count a step.

        Args:
            batch: of the parameters as they are.
            noise: (M,) standard normal, the draws of the values.
            sigma: deviation of the values' Gaussian.
        """
        if self.optimizer.statistics_due:
            rows = self._rows(batch)
            replaying = batch.replaying(rows, trains=False) if self.way.recalls else contextlib.nullcontext()
            with in_precision(self._trainer, self.way.precision), self.optimizer.capture(), replaying:
                distribution, values = self._trainer.policy(batch.observed(rows))
            own = self._generator if self.way.redraws else None
            noise = noise[rows] if own is None else torch.empty_like(noise).normal_(generator=own)[rows]
            # what `GaussNewton` samples, with a draw that is given
            gaussian = Normal(values, sigma, validate_args=False)
            metric = Joint(
                Fisher(distribution=distribution, draw=None if own else batch.actions[rows], generator=own),
                Fisher(distribution=gaussian, draw=values.detach() - sigma * noise),
            )
            self.optimizer.update_statistics(metric, None if batch.weights is None else batch.weights[rows])
            self._turn += 1
        self.optimizer.steps += 1

    def _rows(self, batch: Batch) -> Tensor | slice:
        rows = len(batch.returns)
        parts = max(1, min(rows, round(1 / self.way.stat_fraction)))
        if parts == 1:
            return slice(None)
        return rotating_part(rows, batch.part.num_envs, parts, self._turn)[0].to(batch.returns.device)


class Watch:
    """The observers of one training, inserted before its updates.

    Args:
        trainer: the training, of a shared trunk by ACKTR with a sampled Fisher.
        start: timesteps at which the observers begin.
        end: timesteps of the last comparison.
        every: updates of the training for one that the observers see.

    Attributes:
        observers: by name, none before the start.
        comparisons: so far.

    Raises:
        UserError: another sort of training.
    """

    def __init__(self, trainer: Trainer, *, start: int, end: int, every: int = 1) -> None:
        settings = trainer.settings
        learner_of(trainer)
        if settings.fisher != "sampled":
            raise UserError(f"draws are shared here, and fisher '{settings.fisher}' has none: use fisher sampled")
        if settings.curvature not in ("kfac", "kfoc") or settings.structure != "block-diagonal":
            raise UserError(
                "factors are compared here: use curvature kfac or kfoc and structure block-diagonal, got "
                f"{settings.curvature}, {settings.structure}"
            )
        self.observers: dict[str, Observer] = {}
        self.comparisons: list[dict[str, Any]] = []
        self._trainer = trainer
        self._start, self._every = start, every
        self._marks = [start + (end - start) * (index + 1) / COMPARISONS for index in range(COMPARISONS)]
        self._noise = torch.Generator(trainer.device).manual_seed(settings.seed)
        self._update = trainer.updater.update
        trainer.updater.update = self._watched  # type: ignore[method-assign]

    def _watched(self, batch: Batch, *, progress: float) -> UpdateReport:
        trainer = self._trainer
        after = trainer.timesteps + batch.valid_rows
        is_marked = bool(self._marks) and after >= self._marks[0]
        is_seen = trainer.timesteps >= self._start and (trainer.updates % self._every == 0 or is_marked)
        if is_seen and batch.valid_rows:
            self._observe(batch)
            if is_marked:
                self._marks = [mark for mark in self._marks if mark > after]
                compared = compare(self.observers, gradient(trainer, batch, progress))
                print(f"compared after {after} timesteps", file=sys.stderr)
                self.comparisons.append({"timesteps": after, "updates": trainer.updates + 1, "observers": compared})
        return self._update(batch, progress=progress)

    def _observe(self, batch: Batch) -> None:
        trainer = self._trainer
        if not self.observers:
            seed = trainer.settings.seed + 1
            self.observers = {name: Observer(way, trainer, seed=seed) for name, way in ways(trainer.settings).items()}
        noise = torch.empty_like(batch.returns).normal_(generator=self._noise)
        for observer in self.observers.values():
            observer.observe(batch, noise, trainer.updater._scale.sigma)


def learner_of(trainer: Trainer) -> Any:
    """The one learner of a training with a shared trunk.

    Raises:
        UserError: there are two, or none.
    """
    updater = trainer.updater
    if not isinstance(updater, ACKTRUpdater) or updater.critic is not None:
        raise UserError("observers want one K-FAC optimizer for all: use algorithm acktr and shared_trunk true")
    return updater.actor


@contextlib.contextmanager
def in_precision(trainer: Trainer, precision: str) -> Iterator[None]:
    """The torso in that precision inside, then in the training's own again."""
    trainer.policy.use_precision(getattr(torch, precision))
    try:
        yield
    finally:
        trainer.policy.use_precision(getattr(torch, trainer.settings.precision))


def gradient(trainer: Trainer, batch: Batch, progress: float) -> dict[Tensor, Tensor]:
    """Of the training's objective on a batch, by parameter, in float32."""
    settings, everything = trainer.settings, slice(None)
    parameters = [parameter for parameter in trainer.policy.parameters() if parameter.requires_grad]
    with in_precision(trainer, "float32"):
        distribution, predicted, held = trainer.policy.evaluate(batch.observations)
    policies = [Policies(rows=everything, distribution=distribution)]
    values = [Values(rows=everything, values=predicted, held=held if settings.center_values else None)]
    loss, entropy = policy_losses(policies, batch, normalize_advantages=settings.normalize_advantages)
    objective = loss - _entropy_coef(settings, progress) * entropy
    objective = objective + settings.value_coef * value_loss(values, batch) / trainer.updater._scale.of_loss
    return dict(zip(parameters, torch.autograd.grad(objective, parameters), strict=True))


# --- distances ---------------------------------------------------------------------------------------------------


def compare(observers: Mapping[str, Observer], gradients: Mapping[Tensor, Tensor]) -> dict[str, dict[str, Any]]:
    """Each observer beside the plain one; refreshes all inverses.

    Returns:
        By name "layers", with the relative distances of "A", "G" and the "block" of each, and "cosine", "length" and
        "loss" of the natural gradient.
    """
    plain = observers[PLAIN].optimizer
    reference = natural_gradient(observers[PLAIN], gradients)
    norm = inner(plain.units, reference, reference)
    compared = {}
    for name, observer in observers.items():
        if name == PLAIN:
            continue
        found = natural_gradient(observer, gradients)
        difference = {parameter: found[parameter] - reference[parameter] for parameter in found}
        lengths = [sum(float(part.double().square().sum()) for part in u.values()) for u in (found, reference)]
        overlap = sum(float((found[parameter].double() * reference[parameter].double()).sum()) for parameter in found)
        compared[name] = {
            "layers": {
                unit.name: block_distances(unit.block, other.block)
                for unit, other in zip(observer.optimizer.units, plain.units, strict=True)
                if isinstance(unit.block, KroneckerBlock) and isinstance(other.block, KroneckerBlock)
            },
            "cosine": overlap / (lengths[0] * lengths[1]) ** 0.5,
            "length": (lengths[0] / lengths[1]) ** 0.5,
            "loss": inner(plain.units, difference, difference) / norm,
        }
    return compared


def natural_gradient(observer: Observer, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """(F + λ)⁻¹ g with inverses of the observer's present factors; the parameters' own gradients stay."""
    kept = {parameter: parameter.grad for parameter in gradients}
    try:
        for parameter, value in gradients.items():
            parameter.grad = value
        observer.optimizer.refresh()
        return observer.optimizer.natural_gradient()
    finally:
        for parameter, value in kept.items():
            parameter.grad = value


@torch.no_grad()
def inner(units: Sequence[Unit], one: Mapping[Tensor, Tensor], other: Mapping[Tensor, Tensor]) -> float:
    """`oneᵀ F other` over all units, undamped."""
    total = 0.0
    for unit in units:
        left, right = (unit.matrix([vector[parameter] for parameter in unit.parameters]) for vector in (one, other))
        total += float((left.double() * unit.block.multiply(right).double()).sum())
    return total


def block_distances(block: KroneckerBlock, plain: KroneckerBlock) -> dict[str, float]:
    """Relative Frobenius distances of both factors and of the block to the plain ones."""
    factors = [block.inputs.value, block.outputs.value, plain.inputs.value, plain.outputs.value]
    if any(factor is None for factor in factors):
        raise UserError(
            "an observer has seen no batch before the first comparison, a third of the way from --from to --timesteps: "
            "give more --timesteps, or a smaller --every"
        )
    A, G, plain_A, plain_G = (factor.double() for factor in factors if factor is not None)
    return {
        "A": float((A - plain_A).norm() / plain_A.norm()),
        "G": float((G - plain_G).norm() / plain_G.norm()),
        "block": product_distance(A, G, plain_A, plain_G),
    }


def product_distance(A: Tensor, G: Tensor, plain_A: Tensor, plain_G: Tensor) -> float:
    """|A ⊗ G - plain_A ⊗ plain_G| / |plain_A ⊗ plain_G| in the Frobenius norm, from inner products of the factors.

    The difference is `dA ⊗ G + plain_A ⊗ dG`: written so, near factors lose no digits to one another.

    Args:
        A: (b, i, i).
        G: (b, o, o).
        plain_A: as A.
        plain_G: as G.
    """
    dA, dG = A - plain_A, G - plain_G
    square = _inner(dA, dA) * _inner(G, G) + 2 * _inner(dA, plain_A) * _inner(G, dG)
    square = square + _inner(plain_A, plain_A) * _inner(dG, dG)
    whole = (_inner(plain_A, plain_A) * _inner(plain_G, plain_G)).sum()
    return float((square.sum().clamp(min=0) / whole).sqrt())


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((-1, -2))


# --- the tables --------------------------------------------------------------------------------------------------


def report(comparison: Mapping[str, Any], *, by_layer: bool) -> None:
    """Print one comparison, distances in per cent."""
    print(f"\n{comparison['timesteps']} timesteps, {comparison['updates']} updates: distances, median (largest) layer")
    print(f"  {'':<24}{'A %':>16}{'G %':>16}{'A ⊗ G %':>16}{'cosine of u':>13}{'length':>9}{'loss':>11}")
    for name, found in comparison["observers"].items():
        cells = ""
        for kind in ("A", "G", "block"):
            parts = [100 * layer[kind] for layer in found["layers"].values()]
            cells += f"{f'{statistics.median(parts):.2f} ({max(parts):.2f})':>16}"
        print(f"  {name:<24}{cells}{found['cosine']:13.4f}{found['length']:9.3f}{found['loss']:11.3g}")
    if not by_layer:
        return
    layers = list(next(iter(comparison["observers"].values()))["layers"])
    for kind, title in (("A", "A %"), ("G", "G %"), ("block", "A ⊗ G %")):
        print(f"  {title:<24}" + "".join(f"{layer:>20}" for layer in layers))
        for name, found in comparison["observers"].items():
            print(f"    {name:<22}" + "".join(f"{100 * found['layers'][layer][kind]:20.2f}" for layer in layers))


@in_one_line
def main() -> None:
    """Train, watch, compare and print; `--json FILE` keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="BreakoutNoFrameskip-v4")
    parser.add_argument("--timesteps", type=count, default=100_000, help="where the run is stopped")
    parser.add_argument("--from", type=natural, default=20_000, dest="start", help="timesteps at which observers begin")
    parser.add_argument("--every", type=count, default=1, help="updates for one that the observers see")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument(
        "--set", nargs="*", type=change, default=[], metavar="KEY=VALUE", help="settings other than the preset's"
    )
    parser.add_argument("--json", type=output)
    args = parser.parse_args()
    if args.start >= args.timesteps:
        parser.error("--from must come before --timesteps, where the run is stopped")
    changes = convert(dict(word.split("=", 1) for word in args.set), source="--set")
    began = time.perf_counter()
    trainer = make_trainer(resolve({"env": args.env, "seed": args.seed, **changes}).settings())
    with contextlib.closing(trainer.environment):
        watch = Watch(trainer, start=args.start, end=args.timesteps, every=args.every)
        trainer.train(stop=lambda: trainer.timesteps >= args.timesteps)
    content = {
        **commit(),
        "machine": machine(),
        "torch": torch.__version__,
        "arguments": {name: value for name, value in vars(args).items() if name != "json"},
        "settings": trainer.settings.to_dict(),
        "ways": {name: dataclasses.asdict(observer.way) for name, observer in watch.observers.items()},
        "seconds": round(time.perf_counter() - began, 1),
        "comparisons": watch.comparisons,
    }
    told = f"commit {in_words(content)}; torch {torch.__version__}"
    print(f"{args.env}, seed {args.seed}, {told}; {content['machine']['cpu']}; {content['seconds']:.0f} s")
    for comparison in watch.comparisons:
        report(comparison, by_layer=comparison is watch.comparisons[-1])
    if args.json:
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
