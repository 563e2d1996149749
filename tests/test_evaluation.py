"""Evaluation: raw returns of full games, a fixed share for each environment, stalls flagged, nothing else touched."""

import json
import random
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from acktr.agents import evaluation
from acktr.agents.evaluation import evaluate
from acktr.agents.human_scores import human_normalised
from acktr.agents.policy import ActorCritic
from acktr.agents.settings import Settings
from acktr.envs.make import make_vec
from acktr.envs.vector import Step, VectorEnvironment
from acktr.errors import RunError, UserError

CPU = torch.device("cpu")


class Script(VectorEnvironment):
    """N environments whose games have given lengths and rewards.

    Args:
        lengths: of the games of each environment, repeated for ever.
        reward: of (environment, step of the game counted from 1).
        limit: games that long count as truncated.
    """

    def __init__(self, lengths: Sequence[Sequence[int]], reward: Any, *, limit: int = 10**9) -> None:
        self.id, self.num_envs = "Script-v0", len(lengths)
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,))
        self.action_space = gymnasium.spaces.Discrete(2)
        self.protocol = {"id": self.id}
        self.lengths, self.reward, self.limit = lengths, reward, limit
        self.seeds: list[int] = []

    def reset(self, seeds: Sequence[int] | None) -> NDArray[Any]:
        self.seeds = list(seeds or [])
        self.at, self.game = [0] * self.num_envs, [0] * self.num_envs
        self.returns = [0.0] * self.num_envs
        return np.zeros((self.num_envs, 2), np.float32)

    def step(self, actions: NDArray[Any]) -> Step:
        rewards = np.zeros(self.num_envs)
        ended: list[tuple[float, int, int, bool]] = []
        for env in range(self.num_envs):
            self.at[env] += 1
            rewards[env] = self.reward(env, self.at[env])
            self.returns[env] += rewards[env]
            length = self.lengths[env][self.game[env] % len(self.lengths[env])]
            if self.at[env] == length:
                ended.append((self.returns[env], length, env, length >= self.limit))
                self.at[env], self.returns[env], self.game[env] = 0, 0.0, self.game[env] + 1
        nothing = np.zeros(self.num_envs, np.bool_)
        return Step(
            observations=np.zeros((self.num_envs, 2), np.float32),
            rewards=rewards,
            terminals=nothing,
            truncations=nothing,
            valid=~nothing,
            final_observations=None,
            episode_returns=np.array([e[0] for e in ended], np.float64),
            episode_lengths=np.array([e[1] for e in ended], np.int64),
            episode_envs=np.array([e[2] for e in ended], np.int64),
            episode_truncated=np.array([e[3] for e in ended], np.bool_),
        )

    def close(self) -> None:
        """Nothing to free."""


class Fixed:
    """A policy of one action."""

    def __init__(self, action: int = 0) -> None:
        self.action = action

    def act(self, observations: Tensor, *, generator: torch.Generator, deterministic: bool) -> Tensor:
        return torch.full((observations.shape[0],), self.action)


def run(environment: VectorEnvironment, *, episodes: int, policy: Any = None, **options: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"deterministic": True, "seed": 0, "device": CPU, **options}
    return evaluate(policy or Fixed(), environment, episodes=episodes, **arguments)


def test_every_environment_contributes_its_first_games_so_short_ones_are_not_favoured() -> None:
    """Taking the first games to end would give 1.0, all from the environment of short games."""
    environment = Script([[1], [50, 10]], lambda env, _: 1.0 if env == 0 else 0.1)
    result = run(environment, episodes=4)
    assert result["return_mean"] == pytest.approx((1 + 1 + 5 + 1) / 4)
    assert result["length_mean"] == (1 + 1 + 50 + 10) / 4
    assert sorted(result["returns"]) == pytest.approx([1, 1, 1, 5])
    # mean 2, deviation 2, standard error 1, and 3.182 of them to each side
    assert result["return_ci95"] == pytest.approx([2 - 3.18245, 2 + 3.18245], abs=1e-4)


def test_where_games_cannot_be_shared_equally_the_first_environments_play_one_more() -> None:
    environment = Script([[9], [1], [1]], lambda env, _: 1.0 if env == 0 else 100.0)
    assert sorted(run(environment, episodes=4)["returns"]) == [9, 9, 100, 100]


def test_the_result_is_plain_json_with_the_documented_names_and_no_nan() -> None:
    result = run(Script([[3]], lambda *_: 2.0), episodes=1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == [
        "format",
        "env",
        "episodes",
        "return_mean",
        "return_std",
        "return_median",
        "return_ci95",
        "length_mean",
        "human_normalised",
        "truncated",
        "stalled",
        "returns",
        "protocol",
    ]
    assert (result["return_mean"], result["return_median"]) == (6.0, 6.0)
    assert (result["return_std"], result["return_ci95"]) == (None, None)  # one game says nothing of the spread
    assert result["human_normalised"] is None


def test_a_game_that_never_ends_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_LONGEST_GAME", 30)
    assert run(Script([[29], [30]], lambda *_: 1.0), episodes=4)["length_mean"] == 29.5
    with pytest.raises(UserError, match=r"did not end in 30 decisions.*max_episode_steps"):
        run(Script([[5], [31]], lambda *_: 1.0), episodes=2)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    run(Script([[2], [3]], lambda *_: 1.0), episodes=4, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)
    assert sorted(told) == told


def test_truncated_games_count_and_stalls_are_those_that_wait_for_the_limit() -> None:
    scoring = run(Script([[20]], lambda *_: 1.0, limit=20), episodes=2)
    assert (scoring["truncated"], scoring["stalled"]) == (2, 0)
    waiting = run(Script([[20]], lambda _, step: float(step < 5), limit=20), episodes=2)
    assert (waiting["truncated"], waiting["stalled"]) == (2, 2)
    ending = run(Script([[20]], lambda _, step: float(step < 5)), episodes=2)
    assert (ending["truncated"], ending["stalled"]) == (0, 0)


def test_more_environments_than_games_are_a_user_error() -> None:
    with pytest.raises(UserError, match="use fewer"):
        run(Script([[1], [1]], lambda *_: 1.0), episodes=1)


def test_a_return_that_is_not_finite_is_a_run_error() -> None:
    with pytest.raises(RunError, match=r"'Script-v0'.*nan"):
        run(Script([[2]], lambda *_: float("nan")), episodes=1)


def test_environments_get_different_seeds_that_depend_on_the_seed_alone() -> None:
    seeds = []
    for num_envs, seed in ((4, 1), (8, 1), (4, 2)):
        environment = Script([[1]] * num_envs, lambda *_: 1.0)
        run(environment, episodes=num_envs, seed=seed)
        seeds.append(environment.seeds)
    assert len(set(seeds[1])) == 8
    assert seeds[0] == seeds[1][:4], "environment k is seeded by its index"
    assert set(seeds[0]).isdisjoint(seeds[2])
    assert all(0 <= seed < 2**31 for seed in seeds[1])


def cartpole(**options: Any) -> tuple[ActorCritic, VectorEnvironment]:
    environment = make_vec("CartPole-v1", 2)
    torch.manual_seed(0)
    settings = Settings(env="CartPole-v1", hidden_sizes=(8,), **options)
    return ActorCritic(environment.observation_space, environment.action_space, settings), environment


def test_equal_seeds_give_equal_results_and_other_seeds_others() -> None:
    policy, environment = cartpole()
    first, second, other = (
        run(environment, episodes=10, policy=policy, deterministic=False, seed=seed) for seed in (5, 5, 6)
    )
    environment.close()
    assert first == second
    assert first["return_mean"] != other["return_mean"]


def test_returns_are_raw_and_of_full_games() -> None:
    """A CartPole policy that always pushes left lasts 8 to 10 steps, each worth 1."""
    _, environment = cartpole()
    result = run(environment, episodes=20)
    environment.close()
    assert 8.0 <= result["return_mean"] <= 10.0
    assert result["return_mean"] == result["length_mean"]


def test_evaluating_draws_from_no_shared_random_stream() -> None:
    policy, environment = cartpole()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  the global stream is what must stay untouched
    random.seed(1)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002  likewise
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    run(environment, episodes=4, policy=policy, deterministic=False)
    environment.close()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002  likewise
    assert random.getstate() == before[2]
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())


def test_atari_scores_are_raw_full_games_under_the_fire_rule_of_training() -> None:
    environment = make_vec("BreakoutNoFrameskip-v4", 2, fire_after_life_loss=True)
    result = run(environment, episodes=2)
    environment.close()
    assert result["truncated"] == 0, "with FIRE after a lost life, a policy of no-ops loses all five lives"
    assert result["protocol"]["fire_after_life_loss"] is True
    assert result["human_normalised"] == pytest.approx((result["return_mean"] - 1.7) / (30.5 - 1.7))


def test_human_scores_of_known_games() -> None:
    """Mnih et al. 2015, Wang et al. 2016: a random player is 0 and the human tester 1."""
    assert human_normalised("pong", -20.7) == pytest.approx(0.0)
    assert human_normalised("pong", 14.6) == pytest.approx(1.0)
    assert human_normalised("breakout", 401.2) == pytest.approx(13.87, abs=0.01)
    assert human_normalised("no_such_game", 1.0) is None
