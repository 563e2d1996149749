"""K-FAC in a training loop of one's own: an actor-critic on a vector environment of gymnasium.

The model, the rollout, the advantages and the loss are written out here. `acktr.kfac.KFAC` turns the gradient into a
natural one and keeps each step inside a trust region, of the policy and the value together.

A vector environment of gymnasium resets a finished episode in the step after it. So the observation that follows a
truncation is the episode's own last one, whose value its return goes on with; behind a termination nothing goes on.
The row of the reset is no transition: it has weight 0 in the loss and in the curvature.

    python custom_loop.py                      # CartPole-v1, to 500 of 500
    python custom_loop.py --timesteps 16000    # a look
"""

import argparse
import dataclasses

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, Fisher, GaussNewton, Joint, mean_kl, weighted_mean

ENVS, STEPS, GAMMA, LAMBDA, ENTROPY, MAX_KL = 8, 20, 0.99, 0.95, 0.01, 0.005


class ActorCritic(nn.Module):
    """A policy and a value on one torso."""

    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.torso = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.logits = nn.Linear(64, actions)
        self.value = nn.Linear(64, 1)

    def forward(self, observations: Tensor) -> tuple[Categorical, Tensor]:
        """(N, inputs) to N distributions over actions and values (N,), which are of the order of 100."""
        features = self.torso(observations)
        return Categorical(logits=self.logits(features)), 50 * self.value(features).squeeze(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A rollout of T steps in N environments, time first: (T · N, ...)."""

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor


class Collector:
    """Acts in the environments and says how good that was."""

    def __init__(self, env: RecordEpisodeStatistics, seed: int) -> None:
        self.env = env
        self.observations, _ = env.reset(seed=seed)
        self.over = np.zeros(env.num_envs, dtype=bool)

    @torch.no_grad()
    def collect(self, model: ActorCritic) -> Batch:
        """The next `STEPS` steps."""
        observations, actions, rewards, terminated, over, real = [], [], [], [], [], []
        for _ in range(STEPS):
            observations.append(torch.tensor(self.observations))
            real.append(torch.tensor(~self.over))
            actions.append(model(observations[-1])[0].sample())
            self.observations, reward, ended, cut, _ = self.env.step(actions[-1].numpy())
            self.over = ended | cut
            rewards.append(torch.tensor(reward, dtype=torch.float32))
            terminated.append(torch.tensor(ended))
            over.append(torch.tensor(self.over))
        _, values = model(torch.stack([*observations, torch.tensor(self.observations)]))
        advantages, running = torch.zeros(STEPS, len(self.over)), torch.zeros(len(self.over))
        for step in reversed(range(STEPS)):  # Schulman et al. 2016
            error = rewards[step] + GAMMA * values[step + 1] * ~terminated[step] - values[step]
            running = error + GAMMA * LAMBDA * running * ~over[step]
            advantages[step] = running
        return Batch(
            observations=torch.cat(observations),
            actions=torch.cat(actions),
            advantages=advantages.flatten(),
            returns=(advantages + values[:-1]).flatten(),
            weights=torch.cat(real).float(),
        )


def learn(model: ActorCritic, optimizer: KFAC, batch: Batch) -> None:
    """One step on one batch; one that has moved the policy too far is shortened."""
    with optimizer.capture():
        policy, values = model(batch.observations)
    errors = values - batch.returns
    sigma = weighted_mean(errors.detach().square(), batch.weights).sqrt()  # how far values are off, in their own units
    # the actions were drawn from this very policy, so that they serve as the Fisher's sample
    metric = Joint(Fisher(distribution=policy, draw=batch.actions), GaussNewton(values=values, sigma=sigma))
    optimizer.update_statistics(metric, weights=batch.weights)
    gains = policy.log_prob(batch.actions) * batch.advantages / sigma + ENTROPY * policy.entropy()
    losses = 0.25 * (errors / sigma).square() - gains
    optimizer.zero_grad()
    weighted_mean(losses, batch.weights).backward()
    optimizer.step()
    with torch.no_grad():
        measured = mean_kl(policy, model(batch.observations)[0], batch.weights)
    optimizer.contract((MAX_KL / measured).sqrt().clamp(max=1))


def main() -> None:
    """Train and print the returns."""
    parser = argparse.ArgumentParser(description="K-FAC in a training loop of one's own")
    parser.add_argument("--timesteps", type=int, default=64_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)  # tensors as small as these are slower on more
    env = RecordEpisodeStatistics(gymnasium.make_vec("CartPole-v1", ENVS, vectorization_mode="sync"), buffer_length=20)
    collector = Collector(env, arguments.seed)
    model = ActorCritic(4, 2)
    optimizer = KFAC(model, lr=0.25, max_kl=MAX_KL, momentum=0.5, stat_decay=0.95, inverse_interval=2)
    updates = max(1, arguments.timesteps // (ENVS * STEPS))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=updates)
    for update in range(1, updates + 1):
        learn(model, optimizer, collector.collect(model))
        schedule.step()
        if update % 50 == 0 or update == updates:
            mean = np.mean(env.return_queue or [0])
            print(f"{update * ENVS * STEPS:6} steps, mean of the last 20 returns {mean:5.1f}")


if __name__ == "__main__":
    main()
