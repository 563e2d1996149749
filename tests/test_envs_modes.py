"""One meaning of a step in every autoreset mode, and the rules that environments break."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from acktr.envs.adaptor import declared_autoreset_mode
from acktr.envs.make import describe, family, make_vec
from acktr.envs.spaces import adapt_actions
from acktr.errors import RunError, UserError


class Scripted(gymnasium.Env[Any, Any]):
    """Episodes of given lengths and ends; reward = 1 + episode; observation = (episode, step)."""

    observation_space = Box(-1e6, 1e6, (2,), np.float64)
    action_space = Discrete(3, start=5)

    def __init__(self, ends: list[tuple[int, bool, bool]]) -> None:
        self.ends = ends
        self.episode, self.count = -1, 0
        self.actions: list[int] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episode += 1
        self.count = 0
        return np.array([self.episode, 0.0]), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.actions.append(int(action))
        self.count += 1
        length, terminated, truncated = self.ends[self.episode % len(self.ends)]
        ended = self.count == length
        reward = 1.0 + self.episode
        return np.array([self.episode, self.count], dtype=float), reward, ended and terminated, ended and truncated, {}


def scripted(mode: AutoresetMode, *scripts: list[tuple[int, bool, bool]]) -> Any:
    env = SyncVectorEnv([lambda script=script: Scripted(script) for script in scripts], autoreset_mode=mode)
    return make_vec(env, len(scripts))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(list(AutoresetMode)),
    st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=4),
)
def test_episode_accounting_equals_a_hand_count_in_every_mode(
    mode: AutoresetMode, one: list[tuple[int, bool]], two: list[tuple[int, bool]]
) -> None:
    scripts = [[(length, end, not end) for length, end in script] for script in (one, two)]
    environment = scripted(mode, *scripts)
    environment.reset([0, 1])
    found: dict[int, list[tuple[float, int, bool]]] = {0: [], 1: []}
    valid = np.zeros(2)
    for _ in range(30):
        step = environment.step(np.zeros(2, np.int64))
        valid += step.valid
        assert (step.rewards[~step.valid] == 0).all()
        assert not (step.terminals & step.truncations).any()
        for index, env in enumerate(step.episode_envs):
            ended = (step.episode_returns[index], step.episode_lengths[index], step.episode_truncated[index])
            found[int(env)].append(ended)
    for env, script in enumerate(scripts):
        for episode, (total, length, truncated) in enumerate(found[env]):
            wanted, terminated, _ = script[episode % len(script)]
            assert (total, length, truncated) == (wanted * (1.0 + episode), wanted, not terminated)
        made = sum(length for _, length, _ in found[env])
        dummies = len(found[env]) if mode is AutoresetMode.NEXT_STEP else 0
        assert made <= valid[env] <= made + 5
        assert valid[env] in (30 - dummies, 30 - dummies + 1)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_last_observation_of_a_truncated_episode_is_where_the_mode_says(mode: AutoresetMode) -> None:
    environment = scripted(mode, [(2, False, True)], [(9, True, False)])
    environment.reset([0, 1])
    environment.step(np.zeros(2, np.int64))
    step = environment.step(np.zeros(2, np.int64))
    assert step.truncations.tolist() == [True, False]
    if mode is AutoresetMode.NEXT_STEP:
        assert step.final_observations is None
        assert step.observations[0].tolist() == [0, 2]
        dummy = environment.step(np.zeros(2, np.int64))
        assert dummy.valid.tolist() == [False, True]
        assert dummy.observations[0].tolist() == [1, 0]
        assert environment.step(np.zeros(2, np.int64)).valid.all()
    else:
        assert step.final_observations is not None
        assert step.final_observations[0].tolist() == [0, 2]
        assert step.observations[0].tolist() == [1, 0]
        assert step.valid.all()
    assert step.observations.dtype == np.float32


def test_terminated_wins_where_both_flags_are_set() -> None:
    for mode in AutoresetMode:
        environment = scripted(mode, [(1, True, True)])
        environment.reset([0])
        step = environment.step(np.zeros(1, np.int64))
        assert step.terminals.tolist() == [True]
        assert step.truncations.tolist() == [False]
        assert step.episode_truncated.tolist() == [False]


def test_discrete_actions_and_observations_that_start_elsewhere_are_counted_from_zero() -> None:
    environment = scripted(AutoresetMode.NEXT_STEP, [(9, True, False)])
    assert environment.action_space == Discrete(3)
    environment.reset([0])
    environment.step(np.array([2]))
    assert environment._env.envs[0].actions == [7]


def test_box_actions_are_clipped_before_the_environment_charges_for_them() -> None:
    clipped, raw = make_vec("HalfCheetah-v5", 1), make_vec("HalfCheetah-v5", 1)
    for environment in (clipped, raw):
        environment.reset([3])
    bound = clipped.action_space.high  # type: ignore[attr-defined]  # a Box
    one = clipped.step(10 * bound[None])
    two = raw.step(bound[None])
    assert one.rewards == two.rewards
    with pytest.raises(RunError, match="not finite"):
        clipped.step(np.full((1, 6), np.nan, np.float32))


def test_box_actions_of_1_reach_the_bounds() -> None:
    environment = make_vec("Pendulum-v1", 3)
    assert environment.action_space == Box(-1, 1, (1,), np.float32)
    sent = environment.environment_actions(np.array([[-1.0], [0.25], [7.0]], np.float32))
    assert sent.tolist() == [[-2.0], [0.5], [2.0]]
    assert sent.dtype == np.float32


def test_actions_without_a_bound_keep_their_units_and_uneven_bounds_their_middle() -> None:
    low, high = np.array([-np.inf, 2.0, -0.4], np.float32), np.array([1.0, 6.0, 0.4], np.float32)
    adaptor = adapt_actions(Box(low, high), env="Uneven-v0")
    assert adaptor.space == Box(np.array([-np.inf, -1, -1], np.float32), np.array([1, 1, 1], np.float32))
    sent = adaptor.convert(np.array([[-30.0, 0.0, -1.0], [3.0, 0.5, 1.0]], np.float32))
    assert sent.tolist() == [[-30.0, 4.0, low[2]], [1.0, 5.0, high[2]]]


def test_a_box_that_leaves_nothing_to_choose_is_refused() -> None:
    with pytest.raises(UserError, match="leave nothing to choose"):
        adapt_actions(Box(np.array([0.0, 1.0]), np.array([1.0, 1.0])), env="Narrow-v0")


def test_mode_written_by_another_environment_into_the_shared_metadata_is_not_believed() -> None:
    class Silent(VectorEnv[Any, Any, Any]):
        num_envs = 1
        single_observation_space = Box(-1, 1, (1,), np.float32)
        single_action_space = Discrete(2)

    VectorEnv.metadata["autoreset_mode"] = AutoresetMode.SAME_STEP
    try:
        assert declared_autoreset_mode(Silent()) is None
        with pytest.raises(UserError, match="autoreset mode"):
            make_vec(Silent(), 1)
    finally:
        del VectorEnv.metadata["autoreset_mode"]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("BreakoutNoFrameskip-v4", "atari"),
        ("ALE/Pong-v5", "atari"),
        ("CartPole-v1", "classic-control"),
        ("HalfCheetah-v5", "mujoco"),
        ("LunarLander-v3", "box2d"),
        ("FrozenLake-v1", "vector"),
    ],
)
def test_family_comes_from_the_entry_point(env: str, expected: str) -> None:
    assert family(env) == expected
    assert describe(env) == (env, expected)


def test_unknown_ids_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="CartPole-v1"):
        make_vec("CartPol-v1", 1)
    with pytest.raises(UserError, match="BreakoutNoFrameskip-v4"):
        make_vec("Breakout", 1)


def test_a_registered_environment_need_not_know_render_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gymnasium.envs.registration.EnvSpec(
        "Scripted-v0", entry_point=lambda: Scripted([(3, True, False)]), max_episode_steps=9
    )
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    environment = make_vec(spec.id, 2)
    assert environment.reset([0, 1]).shape == (2, 2)
    with pytest.raises(UserError, match="takes no render_mode"):
        make_vec(spec.id, 1, render=True)


def test_a_factory_that_returns_one_environment_twice_is_refused() -> None:
    single = gymnasium.make("CartPole-v1")
    with pytest.raises(UserError, match="twice"):
        make_vec(lambda: single, 2)


def test_factories_ids_and_vector_environments_describe_themselves() -> None:
    """A wrapped Pendulum was trained with values that do not learn it, since its id was not asked for its family."""
    assert describe(lambda: gymnasium.make("Pendulum-v1")) == ("Pendulum-v1", "classic-control")
    wrapped = gymnasium.wrappers.RescaleAction
    assert describe(lambda: wrapped(gymnasium.make("Hopper-v5"), -1.0, 1.0)) == ("Hopper-v5", "mujoco")
    env = gymnasium.make_vec("Acrobot-v1", 2, vectorization_mode="sync")
    assert describe(env) == ("Acrobot-v1", "classic-control")
    frames = Box(0, 255, (8, 8, 3), np.uint8)
    framed = gymnasium.wrappers.TransformObservation
    seen = describe(lambda: framed(gymnasium.make("CartPole-v1"), lambda state: np.zeros((8, 8, 3), np.uint8), frames))
    assert seen == ("CartPole-v1", "image")
    with pytest.raises(UserError, match="function that makes"):
        describe(gymnasium.make("CartPole-v1"))  # type: ignore[arg-type]  # that is the point


def test_equal_seeds_give_equal_episodes_whatever_came_before() -> None:
    environment = make_vec("CartPole-v1", 3)
    first = environment.reset([1, 2, 3])
    for _ in range(30):
        environment.step(np.ones(3, np.int64))
    np.testing.assert_array_equal(environment.reset([1, 2, 3]), first)
    with pytest.raises(ValueError, match="3 non-negative"):
        environment.reset([1])


def test_mujoco_says_nothing_of_the_models_that_gymnasium_ships_and_warns_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A HalfCheetah started with a deprecation for each of its environments, and a log file in the working folder."""
    monkeypatch.chdir(tmp_path)
    environment = make_vec("HalfCheetah-v5", 2)
    assert capfd.readouterr() == ("", "")
    world: Any = environment._env._group.envs[0].unwrapped  # type: ignore[attr-defined]
    environment.reset([0, 1])
    world.data.qvel[:] = 1e20
    with pytest.warns(RuntimeWarning, match="MuJoCo: .*unstable"):
        environment.step(np.zeros((2, 6), np.float32))
    assert not list(tmp_path.iterdir())
