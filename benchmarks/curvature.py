"""How far K-FAC's estimate of a step's KL is from the truth, layer by layer and for each part of the loss.

For the preconditioned gradient u of each part of the objective, the true quadratic form uᵀ F u comes from one
Jacobian-vector product: E[|Sᵀ dz|²] of the policy's outputs z, with S Sᵀ their Fisher, and E[dv²] / sigma² of the
values. `shared` is the part of the values' that all examples have in common. Frames whose background stands still make
it large, and K-FAC, which takes layers and positions as independent, makes it small.

    python benchmarks/curvature.py --env PongNoFrameskip-v4 [--checkpoint runs/pong/checkpoints/final.safetensors]
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from acktr.agents import checkpoint
from acktr.agents.presets import resolve
from acktr.agents.reporting import Reporter
from acktr.agents.runs import build_policy, build_updater, choose_device, make_environment
from acktr.agents.settings import convert
from acktr.agents.streams import Streams
from acktr.agents.threads import set_threads
from acktr.agents.trainer import Trainer
from acktr.kfac import Fisher

BATCHES = 12


def main() -> None:
    """Gather statistics with the weights at rest, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="PongNoFrameskip-v4")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings other than the preset's")
    args = parser.parse_args()
    changes = convert(dict(word.split("=", 1) for word in args.set), source="--set")
    settings = resolve(
        {
            "stat_fraction": 1.0,
            "stat_interval": 1,
            "inverse_interval": 1,
            **changes,
            "env": args.env,
            "lr": 1e-12,
            "critic_lr": 1e-12,
        }
    ).settings()
    environment = make_environment(settings)
    set_threads(settings.num_threads)
    device, _ = choose_device(settings, environment)
    streams = Streams(0, device)
    streams.seed_globals()
    policy = build_policy(settings, environment, device)
    if args.checkpoint is not None:
        policy.load_state_dict(dict(checkpoint.load(args.checkpoint).state["policy"]))
    updater = build_updater(settings, policy, streams)
    reporter = Reporter(None, settings, console=False)
    trainer = Trainer(settings, environment, policy, updater=updater, streams=streams, reporter=reporter, folder=None)
    trainer.collector.restart()
    for _ in range(BATCHES):
        batch = trainer._collect()
        updater.update(batch, progress=0.0)
    sigma = float(updater._scale.sigma)
    learners = [learner for learner in (updater.actor, updater.critic) if learner is not None]
    units = [(unit, learner.region.damping) for learner in learners for unit in learner.optimizer.units]
    parameters = {name: parameter.detach() for name, parameter in policy.named_parameters()}
    names = {id(parameter): name for name, parameter in policy.named_parameters()}

    def outputs(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        distribution, found = functional_call(policy, values, (batch.observations,))
        return Fisher(distribution=distribution, kind="exact").exact_losses(), found

    def true_form(step: dict[str, Tensor]) -> tuple[float, float, float]:
        tangents = {name: step.get(name, torch.zeros_like(value)) for name, value in parameters.items()}
        _, (moved, shifted) = jvp(outputs, (parameters,), (tangents,))
        policy_part = moved.square().sum(0).mean()  # of each column of S
        value_part = shifted.square().mean()
        return (
            float(policy_part),
            float(value_part / sigma**2),
            float(shifted.mean().square() / value_part.clamp(1e-30)),
        )

    distribution, values = policy(batch.observations)
    errors = values - batch.returns
    losses = {
        "policy": -(distribution.log_prob(batch.actions) * batch.advantages).mean(),
        "value": settings.value_coef * errors.square().mean() / 2,
        "value, centred": settings.value_coef * errors.var(correction=0) / 2,
    }
    print(f"{'loss':<16}{'layer':<22}{'policy':>10}{'value':>10}{'shared':>8}{'predicted':>11}{'true/predicted':>16}")
    for title, loss in losses.items():
        found = torch.autograd.grad(loss, list(policy.parameters()), retain_graph=True, allow_unused=True)
        gradients = {
            name: torch.zeros_like(value) if gradient is None else gradient
            for (name, value), gradient in zip(parameters.items(), found, strict=True)
        }
        whole: dict[str, Tensor] = {}
        total = 0.0
        for unit, damping in units:
            matrix = unit.matrix([gradients[names[id(parameter)]] for parameter in unit.parameters])
            with torch.no_grad():
                step = unit.block.precondition(matrix, damping)
                predicted = float((step * unit.block.multiply(step)).sum())
            parts = {names[id(p)]: part for p, part in zip(unit.parameters, unit.split(step), strict=True)}
            whole.update(parts)
            total += predicted
            report(title, unit.name, true_form(parts), predicted)
        report(title, "all", true_form(whole), total)
    environment.close()


def report(title: str, layer: str, true: tuple[float, float, float], predicted: float) -> None:
    """Print one line."""
    policy_part, value_part, shared = true
    ratio = (policy_part + value_part) / max(predicted, 1e-30)
    print(
        f"{title:<16}{layer:<22}{policy_part:>10.1e}{value_part:>10.1e}{shared:>8.2f}{predicted:>11.1e}{ratio:>16.1f}"
    )


if __name__ == "__main__":
    main()
