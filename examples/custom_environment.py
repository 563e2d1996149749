"""An environment of one's own: registered with gymnasium, learnt by ACKTR, evaluated and used.

A craft drifts on a line and is to come to its station and stay there, for 100 steps, with little fuel. What it takes is
what gymnasium asks for: two spaces, `reset` and `step`. ACKTR then takes the id. From the command line the same is
`acktr train --env custom_environment:Station-v0`, where Python finds this file.

    python custom_environment.py                      # from 20 at random to some 90 of 100
    python custom_environment.py --timesteps 10000    # a look
"""

import argparse
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

import acktr

Observation = NDArray[np.float32]

THRUST, FUEL, EDGE = 0.01, 0.05, 1.5
"""Change of the speed in one step, and what it costs; beyond the edge the craft is lost."""


class Station(gymnasium.Env[Observation, np.int64]):
    """Keep a craft at 0: a reward of up to 1 for each step, the nearer the more."""

    observation_space = Box(-5, 5, (2,), np.float32)  # position, and ten times the speed
    action_space = Discrete(3)  # back, drift, ahead

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Observation, dict[str, Any]]:
        """Start anywhere between the edges, drifting."""
        super().reset(seed=seed)  # makes np_random: seeded where a seed is given, going on where none is
        self.position = self.np_random.uniform(-1.0, 1.0)
        self.speed = self.np_random.uniform(-0.05, 0.05)
        return self.observation(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move."""
        thrust = int(action) - 1
        self.speed += THRUST * thrust
        self.position += self.speed
        lost = abs(self.position) > EDGE  # terminated: nothing more is to come
        reward = max(0.0, 1 - abs(self.position)) - FUEL * abs(thrust)
        # the limit of 100 steps is the registration's, and truncates: returns go on with the last observation's value
        return self.observation(), reward, lost, False, {}

    def observation(self) -> Observation:
        """What the policy sees."""
        return np.array([self.position, 10 * self.speed], dtype=np.float32)


gymnasium.register("Station-v0", entry_point=Station, max_episode_steps=100)


def main() -> None:
    """Check the environment, train, evaluate and use the policy."""
    parser = argparse.ArgumentParser(description="an environment of one's own")
    parser.add_argument("--timesteps", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    check_env(Station(), skip_render_check=True)  # gymnasium's own test of its rules

    agent = acktr.ACKTR("Station-v0", seed=arguments.seed, vectorization="sync")
    before = agent.evaluate(100, deterministic=False)  # a fresh policy draws its actions nearly evenly
    agent.learn(arguments.timesteps)
    after = agent.evaluate(100)
    for name, result in (("at random", before), ("trained", after)):
        low, high = result["return_ci95"]
        length = result["length_mean"]
        print(f"{name:10} return {result['return_mean']:5.1f} ({low:.1f} to {high:.1f}), {length:.0f} steps")

    for position, speed in ((1.0, 0.0), (0.3, -0.1)):
        action = agent.predict(np.array([position, 10 * speed], np.float32), deterministic=True)
        print(f"at {position} with speed {speed}: {('back', 'drift', 'ahead')[int(action)]}")
    agent.close()


if __name__ == "__main__":
    main()
