"""The emulator behind the classic ids: lives, FIRE, stickiness, raw scores, threads."""

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

from acktr.envs.make import make_vec
from acktr.errors import UserError

warnings.filterwarnings("ignore", category=DeprecationWarning)


def play(environment: Any, steps: int, seed: int = 0, *, fire: bool = True) -> list[Any]:
    draw = np.random.default_rng(seed)
    environment.reset([seed * 100 + index for index in range(environment.num_envs)])
    low = 0 if fire else 2
    return [
        environment.step(draw.integers(low, environment.action_space.n, environment.num_envs)) for _ in range(steps)
    ]


@pytest.mark.parametrize(
    ("env", "sticky"), [("BreakoutNoFrameskip-v4", 0.0), ("ALE/Breakout-v5", 0.25), ("ALE/Pong-v5", 0.25)]
)
def test_stickiness_follows_the_id_and_is_in_the_protocol(env: str, sticky: float) -> None:
    environment = make_vec(env, 2)
    assert environment.protocol["repeat_action_probability"] == sticky
    assert environment.protocol["frame_skip"] == 4
    assert environment.observation_space.shape == (4, 84, 84)
    assert environment.reset([0, 1]).dtype == np.uint8


def test_old_spellings_are_refused_or_warned_about_and_never_silently_something_else() -> None:
    with pytest.raises(UserError, match="NoFrameskip-v4"):
        make_vec("BreakoutDeterministic-v4", 1)


def test_a_lost_life_is_terminal_for_learning_but_the_episode_and_its_score_go_on() -> None:
    environment = make_vec("BreakoutNoFrameskip-v4", 8, terminal_on_life_loss=True, fire_after_life_loss=True)
    steps = play(environment, 600)
    terminals = sum(int(step.terminals.sum()) for step in steps)
    episodes = sum(step.episode_returns.size for step in steps)
    assert episodes >= 4
    assert terminals >= 4 * episodes  # Breakout has five lives
    total = sum(float(step.rewards.sum()) for step in steps)
    scored = sum(float(step.episode_returns.sum()) for step in steps)
    assert 0 < scored <= total
    assert not any(step.truncations.any() for step in steps)


def test_fire_is_pressed_after_a_lost_life_and_that_row_is_not_learnt_from() -> None:
    environment = make_vec("BreakoutNoFrameskip-v4", 4, terminal_on_life_loss=True, fire_after_life_loss=True)
    steps = play(environment, 400, fire=False)
    for before, after in itertools.pairwise(steps):
        assert not after.valid[before.terminals].any()
        assert after.valid[~before.terminals].all()
    # a policy that never fires comes to the end of its games all the same
    assert sum(step.episode_returns.size for step in steps) > 0


def test_without_the_fire_rule_a_policy_that_never_fires_stands_still() -> None:
    environment = make_vec("BreakoutNoFrameskip-v4", 4)
    steps = play(environment, 400, fire=False)
    assert sum(step.episode_returns.size for step in steps) == 0


@pytest.mark.parametrize("game", ["Atlantis", "BankHeist", "WizardOfWor"])
def test_lives_that_fall_to_zero_while_the_game_goes_on_are_no_terminal(game: str) -> None:
    environment = make_vec(f"{game}NoFrameskip-v4", 4, terminal_on_life_loss=True)
    emulator = environment._emulator  # type: ignore[attr-defined]  # watched, not changed
    original, lives = emulator.step, []
    emulator.step = lambda actions: lives.append(original(actions)) or lives[-1]
    steps = play(environment, 500)
    previous = np.full(4, 99)
    for step, raw in zip(steps, lives, strict=True):
        now = np.asarray(raw[4]["lives"])
        fell_to_zero = (now == 0) & (previous > 0) & ~np.asarray(raw[2])
        assert not step.terminals[fell_to_zero].any()
        previous = now


def test_raw_scores_are_kept_unclipped() -> None:
    steps = play(make_vec("SpaceInvadersNoFrameskip-v4", 4), 300)
    assert max(float(step.rewards.max()) for step in steps) > 1


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_episodes_are_counted_alike_in_both_modes(mode: AutoresetMode) -> None:
    environment = make_vec("BreakoutNoFrameskip-v4", 4, fire_after_life_loss=True, autoreset_mode=mode)
    steps = play(environment, 500)
    ended = [length for step in steps for length in step.episode_lengths]
    assert ended
    invalid_resets = sum(int((~step.valid).sum()) for step in steps)
    assert invalid_resets > 0  # forced FIRE rows at least
    assert all(length > 50 for length in ended)


def test_one_and_two_emulator_threads_give_the_same_bytes() -> None:
    runs = [play(make_vec("PongNoFrameskip-v4", 4, num_threads=threads), 120) for threads in (1, 2)]
    for one, two in zip(*runs, strict=True):
        np.testing.assert_array_equal(one.observations, two.observations)
        np.testing.assert_array_equal(one.rewards, two.rewards)


def test_seeds_decide_the_games_whatever_came_before() -> None:
    environment = make_vec("BreakoutNoFrameskip-v4", 2)
    first = play(environment, 40, seed=5)
    play(environment, 25, seed=6)
    again = play(environment, 40, seed=5)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.observations, two.observations)


def test_the_emulator_does_not_write_its_mode_into_the_class_that_all_share() -> None:
    before = dict(VectorEnv.metadata)
    one = make_vec("PongNoFrameskip-v4", 1, autoreset_mode=AutoresetMode.SAME_STEP)
    two = make_vec("PongNoFrameskip-v4", 1)
    assert VectorEnv.metadata == before
    assert one.protocol["autoreset_mode"] != two.protocol["autoreset_mode"]


def test_the_emulator_has_no_disabled_mode() -> None:
    with pytest.raises(UserError, match="DISABLED"):
        make_vec("PongNoFrameskip-v4", 1, autoreset_mode=AutoresetMode.DISABLED)


def test_life_rules_on_environments_without_lives_are_refused() -> None:
    with pytest.raises(UserError, match="Atari"):
        make_vec("CartPole-v1", 1, terminal_on_life_loss=True)
