"""What a benchmark runs: suites of environments, and who takes part. Data; imports no torch."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from acktr.errors import UserError

RANDOM = "random"
"""Uniformly random play: where a score of 0 lies when scores are normalised."""

HUMAN = "human"
"""The human tester of Atari games, where a score of 1 lies."""

PEERS = MappingProxyType(
    {
        "sb3-a2c": "stable-baselines3's A2C",
        "sb3-ppo": "stable-baselines3's PPO",
        "sb3-trpo": "sb3-contrib's TRPO",
    }
)
"""Algorithms of other packages that can take part, and what they are."""

_LOCOMOTION = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
_SEVEN_GAMES = ("BeamRider", "Breakout", "Enduro", "Pong", "Qbert", "Seaquest", "SpaceInvaders")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """An algorithm with what sets it apart.

    Attributes:
        name: of its folders and in tables, such as "acktr" or "sb3-ppo".
        algorithm: "acktr", "a2c", "random", or a peer's.
        changes: settings other than the preset's, by name, of ours.
    """

    name: str
    algorithm: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether `acktr train` trains it."""
        return self.algorithm in ("acktr", "a2c")


ACKTR = Contestant(name="acktr", algorithm="acktr")
A2C = Contestant(name="a2c", algorithm="a2c")
CHANCE = Contestant(name=RANDOM, algorithm=RANDOM)


_NO_REGION = {"max_kl": 0.0, "desired_kl": 0.0, "max_measured_kl": 0.0}


def _changed(name: str, **changes: Any) -> Contestant:
    return Contestant(name=name, algorithm="acktr", changes=changes)


def _dampings(*values: float) -> tuple[Contestant, ...]:
    return tuple(_changed(f"damping-{value:g}", damping=value, critic_damping=value) for value in values)


_ABLATIONS = (
    *(
        _changed(
            f"critic-adam-{rate:g}-x{iterations}", critic_optimizer="adam", critic_lr=rate, critic_iterations=iterations
        )
        for rate, iterations in ((3e-4, 20), (1e-3, 5), (1e-3, 20), (3e-3, 20))
    ),
    *(_changed(f"no-trust-region-lr-{rate:g}", lr=rate, **_NO_REGION) for rate in (1.0, 0.3, 0.1, 0.03, 0.01)),
    _changed("fisher-exact", fisher="exact"),
    _changed("fisher-empirical", fisher="empirical"),
    *(_changed(name, curvature=name) for name in ("ekfac", "kfoc", "ekfoc", "diagonal")),
    _changed("block-tridiagonal", structure="block-tridiagonal"),
)
"""One part of ACKTR changed at a time. What a part leaves without a step size is given several."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark.

    Attributes:
        description: one line.
        environments: ids.
        total_timesteps: of every run; 0 leaves it to each environment's preset.
        seeds: runs of each of ours on each environment, with seeds 0, 1, ...
        contestants: ours.
        peer_environments: where peers take part when they are asked for.
        peer_seeds: runs of each peer.
        references: whose mean score counts as 1, the first of them that ran on an environment; HUMAN has scores on
            Atari.
    """

    description: str
    environments: tuple[str, ...]
    total_timesteps: int = 0
    seeds: int = 5
    contestants: tuple[Contestant, ...] = (ACKTR, A2C)
    peer_environments: tuple[str, ...] = ()
    peer_seeds: int = 3
    references: tuple[str, ...] = ("sb3-trpo", "a2c")


SUITES: MappingProxyType[str, Suite] = MappingProxyType(
    {
        "cartpole": Suite(
            description="CartPole, a first look within minutes",
            environments=("CartPole-v1",),
            total_timesteps=150_000,
            peer_environments=("CartPole-v1",),
        ),
        "classic": Suite(
            description="classic control from state vectors",
            environments=("CartPole-v1", "Acrobot-v1", "Pendulum-v1"),
            total_timesteps=300_000,
            peer_environments=("CartPole-v1", "Acrobot-v1", "Pendulum-v1"),
        ),
        "mujoco-1m": Suite(
            description="MuJoCo from state vectors, a million steps",
            environments=(
                *_LOCOMOTION,
                "Swimmer-v5",
                "Reacher-v5",
                "InvertedPendulum-v5",
                "InvertedDoublePendulum-v5",
            ),
            total_timesteps=1_000_000,
            peer_environments=_LOCOMOTION,
        ),
        "ablations-cartpole": Suite(
            description="ACKTR's parts, one changed at a time, on CartPole",
            environments=("CartPole-v1",),
            total_timesteps=150_000,
            seeds=3,
            contestants=(ACKTR, *_ABLATIONS, *_dampings(0.001, 0.1, 1.0)),
            references=("acktr",),
        ),
        "ablations-halfcheetah": Suite(
            description="ACKTR's parts, one changed at a time, on HalfCheetah",
            environments=("HalfCheetah-v5",),
            total_timesteps=300_000,
            seeds=3,
            contestants=(ACKTR, *_ABLATIONS, *_dampings(0.01, 1.0)),
            references=("acktr",),
        ),
        "atari-2m": Suite(
            description="Pong and Breakout on a CPU's budget, two million steps",
            environments=("PongNoFrameskip-v4", "BreakoutNoFrameskip-v4"),
            total_timesteps=2_000_000,
            seeds=2,
            peer_environments=("PongNoFrameskip-v4", "BreakoutNoFrameskip-v4"),
            peer_seeds=1,
            references=(HUMAN,),
        ),
        "atari-10m": Suite(
            description="the seven games of Mnih et al. 2013, ten million steps",
            environments=tuple(f"{game}NoFrameskip-v4" for game in _SEVEN_GAMES),
            total_timesteps=10_000_000,
            seeds=3,
            peer_environments=tuple(f"{game}NoFrameskip-v4" for game in _SEVEN_GAMES),
            peer_seeds=1,
            references=(HUMAN,),
        ),
    }
)


def suite(name: str) -> Suite:
    """A suite by its name.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.4)
        hint = f"; nearest: {near[0]}" if near else ""
        raise UserError(f"there is no benchmark '{name}'{hint}; there are {', '.join(SUITES)}")
    return SUITES[name]


def peers(names: Sequence[str]) -> tuple[Contestant, ...]:
    """Peers by name.

    Raises:
        UserError: there is no such peer.
    """
    for name in names:
        if name not in PEERS:
            raise UserError(f"there is no peer '{name}'; there are {', '.join(PEERS)}")
    return tuple(Contestant(name=name, algorithm=name) for name in dict.fromkeys(names))
