"""Every space that policies take, as environments have it and as policies see it."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from acktr.agents.observations import as_batch
from acktr.envs.make import describe, make_vec
from acktr.envs.spaces import adapt_actions, adapt_observations
from acktr.errors import RunError, UserError

NESTED = Dict(
    {
        "goal": MultiDiscrete([3, 4], start=[1, -1]),
        "arm": Dict({"angles": Box(-3, 3, (2, 2), np.float64), "on": MultiBinary(2)}),
        "pair": Tuple((Discrete(5, start=2), Box(0, 255, (8, 9, 3), np.uint8))),
    }
)


class Nested(gymnasium.Env[Any, Any]):
    """Episodes of two steps, then truncated; every observation tells the episode and the step."""

    observation_space = NESTED
    action_space = MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, -2]])

    def __init__(self) -> None:
        self.episode, self.count = -1, 0
        self.actions: list[Any] = []

    def observation(self) -> dict[str, Any]:
        mark = 0.5 * self.episode + 0.25 * self.count
        found = {
            "goal": np.array([1 + self.count, -1 + self.episode % 4]),
            "arm": {"angles": np.full((2, 2), mark), "on": np.array([self.count % 2, 1], np.int8)},
            "pair": (2 + self.count, np.full((8, 9, 3), self.episode, np.uint8)),
        }
        assert self.observation_space.contains(found)
        return found

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episode, self.count = self.episode + 1, 0
        return self.observation(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.actions.append(action)
        self.count += 1
        return self.observation(), 1.0, False, self.count == 2, {}


def expected(episode: int, count: int) -> dict[str, Any]:
    return {
        "arm/angles": [[0.5 * episode + 0.25 * count] * 2] * 2,
        "arm/on": [count % 2, 1],
        "goal": [count, episode % 4],
        "pair/0": count,
        "pair/1": np.full((3, 8, 9), episode).tolist(),
    }


def row(batch: Any, index: int) -> dict[str, Any]:
    return {name: leaf[index].tolist() for name, leaf in batch.items()}


def test_nested_spaces_become_one_dict_in_the_order_of_its_keys() -> None:
    space = make_vec(Nested, 2).observation_space
    assert isinstance(space, Dict)
    assert list(space.spaces) == ["arm/angles", "arm/on", "goal", "pair/0", "pair/1"]
    assert space == Dict(
        {
            "arm/angles": Box(-3, 3, (2, 2), np.float32),
            "arm/on": MultiBinary(2),
            "goal": MultiDiscrete([3, 4]),
            "pair/0": Discrete(5),
            "pair/1": Box(0, 255, (3, 8, 9), np.uint8),
        }
    )
    assert describe(Nested) == ("Nested", "image")


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_nested_observations_are_where_the_mode_says(mode: AutoresetMode) -> None:
    environment = make_vec(SyncVectorEnv([Nested, Nested], autoreset_mode=mode), 2)
    first = environment.reset([0, 1])
    assert row(first, 0) == row(first, 1) == expected(0, 0)
    actions = np.zeros((2, 4), np.int64)
    assert row(environment.step(actions).observations, 1) == expected(0, 1)
    step = environment.step(actions)
    assert step.truncations.all()
    if mode is AutoresetMode.NEXT_STEP:
        assert step.final_observations is None
        assert row(step.observations, 0) == expected(0, 2)
        assert not environment.step(actions).valid.any()
    else:
        assert row(step.final_observations, 0) == expected(0, 2)
        assert row(step.observations, 0) == expected(1, 0)
        after = environment.step(actions)
        assert row(step.observations, 0) == expected(1, 0), "written into by a later step"
        assert row(after.observations, 0) == expected(1, 1)
    assert {name: leaf.dtype.name for name, leaf in first.items()} == {  # type: ignore[union-attr]
        "arm/angles": "float32",
        "arm/on": "int8",
        "goal": "int64",
        "pair/0": "int64",
        "pair/1": "uint8",
    }


def test_final_observations_given_as_a_full_batch_are_understood() -> None:
    class Whole(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            *rest, info = super().step(actions)
            if "final_obs" in info:
                rows = [NESTED.sample() if last is None else last for last in info["final_obs"]]
                info["final_obs"] = gymnasium.vector.utils.concatenate(
                    NESTED, rows, gymnasium.vector.utils.create_empty_array(NESTED, len(rows))
                )
            return *rest, info

    environment = make_vec(Whole([Nested, Nested], autoreset_mode=AutoresetMode.SAME_STEP), 2)
    environment.reset([0, 1])
    environment.step(np.zeros((2, 4), np.int64))
    assert row(environment.step(np.zeros((2, 4), np.int64)).final_observations, 1) == expected(0, 2)


def test_a_missing_final_observation_of_a_dict_is_said() -> None:
    class Silent(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            *rest, info = super().step(actions)
            info.pop("final_obs", None)
            return *rest, info

    environment = make_vec(Silent([Nested], autoreset_mode=AutoresetMode.SAME_STEP), 1)
    environment.reset([0])
    environment.step(np.zeros((1, 4), np.int64))
    with pytest.raises(RunError, match="final_obs"):
        environment.step(np.zeros((1, 4), np.int64))


def test_choices_that_start_elsewhere_are_counted_from_zero_by_the_policy() -> None:
    environment = make_vec(Nested, 1)
    assert environment.action_space == MultiDiscrete([2, 3, 4, 5])
    environment.reset([0])
    environment.step(np.array([[1, 2, 3, 4]]))
    inner = environment._env._group.envs[0]  # type: ignore[attr-defined]
    assert inner.actions[0].tolist() == [[2, 2], [3, 2]]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        [
            Discrete(4, start=-2),
            MultiDiscrete([3, 2], start=[5, -1]),
            MultiDiscrete(np.array([[3, 2], [1, 9]]), dtype=np.int32),
            MultiBinary(5),
            MultiBinary([2, 3]),
            Box(np.array([-2.0, 0.5], np.float32), np.array([1.0, 9.0], np.float32)),
            Box(-1, 1, (2, 2), np.float64),
        ]
    ),
    st.integers(0, 1000),
)
def test_any_action_of_the_policys_space_is_one_of_the_environments(space: Any, seed: int) -> None:
    adaptor = adapt_actions(space, env="Any-v0")
    adaptor.space.seed(seed)
    batch = adaptor.convert(np.stack([np.asarray(adaptor.space.sample()) for _ in range(3)]))
    assert batch.dtype == space.dtype
    for action in batch:
        assert space.contains(np.asarray(action) if space.shape else space.dtype.type(action))


def test_bits_drawn_as_floats_reach_the_environment_as_bits_unless_they_are_none() -> None:
    adaptor = adapt_actions(MultiBinary([2, 2]), env="Bits-v0")
    sent = adaptor.convert(np.array([[0.0, 1.0, 1.0, 0.0]], np.float32))
    assert (sent.dtype, sent.tolist()) == (np.int8, [[[0, 1], [1, 0]]])
    with pytest.raises(RunError, match="not finite"):
        adaptor.convert(np.array([[0.0, np.nan, 1.0, 0.0]], np.float32))


UNKNOWN = [
    spaces.Text(5),
    spaces.Graph(Box(-1, 1, (2,)), None),
    spaces.Sequence(Discrete(3)),
    spaces.OneOf((Discrete(2), Box(-1, 1, (2,)))),
]


@pytest.mark.parametrize("space", UNKNOWN, ids=lambda space: type(space).__name__)
def test_spaces_that_nothing_here_takes_are_named_with_what_to_do(space: Any) -> None:
    name = type(space).__name__
    with pytest.raises(
        UserError, match=rf"'Odd-v0' has the observation space {name}\(.*wrap the environment"
    ) as raised:
        adapt_observations(space, env="Odd-v0")
    assert "\n" not in str(raised.value)
    with pytest.raises(
        UserError, match=rf"under 'inner/mission', has .* {name}\(.*leave the key out.*FilterObservation"
    ):
        adapt_observations(Dict({"inner": Dict({"mission": space}), "ok": Discrete(2)}), env="Odd-v0")
    with pytest.raises(UserError, match=rf"'Odd-v0' has the action space {name}\(.*wrap the environment"):
        adapt_actions(space, env="Odd-v0")


def test_an_environment_of_such_a_space_is_refused_in_one_line() -> None:
    class Odd(Nested):
        observation_space = Dict({"mission": spaces.Text(5), "sensor": Discrete(2)})

    with pytest.raises(UserError, match="under 'mission'"):
        make_vec(Odd, 2)


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        (Dict({}), "nothing to learn from"),
        (Dict({"a/b": Discrete(2), "a": Dict({"b": Discrete(3)})}), "two observations called 'a/b'"),
        (Dict({"video": Box(0, 255, (2, 8, 8, 3), np.uint8)}), "under 'video', has observations of shape"),
    ],
)
def test_dicts_that_make_no_observation_are_refused(space: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        adapt_observations(space, env="Odd-v0")


@pytest.mark.parametrize(
    "space", [Dict({"a": Discrete(2)}), Tuple((Discrete(2), Box(-1, 1, (1,)))), Box(-1, 1, (2,), np.int32)]
)
def test_actions_that_no_policy_gives_are_refused(space: Any) -> None:
    with pytest.raises(UserError, match="has the action space"):
        adapt_actions(space, env="Odd-v0")


def test_one_nested_observation_or_a_batch_of_them_is_told_apart() -> None:
    NESTED.seed(0)
    observations = [NESTED.sample() for _ in range(3)]
    batch = gymnasium.vector.utils.concatenate(
        NESTED, observations, gymnasium.vector.utils.create_empty_array(NESTED, 3)
    )
    convert = adapt_observations(NESTED, env="x").convert
    one, single = as_batch(NESTED, observations[1])
    many, several = as_batch(NESTED, batch)
    assert (single, several) == (True, False)
    assert row(convert(one), 0) == row(convert(many), 1)


def broken(**changes: Any) -> dict[str, Any]:
    NESTED.seed(0)
    return {**NESTED.sample(), **changes}


@pytest.mark.parametrize(
    ("observation", "reason"),
    [
        (np.zeros(3), r"the keys \['arm', 'goal', 'pair'\], got ndarray"),
        ({"arm": 1}, r"got \['arm'\]"),
        (broken(goal=np.array([0, 0])), r"under 'goal' of MultiDiscrete"),
        (broken(goal=np.array([[1, 0]] * 4)), "parts of different numbers"),
        (broken(pair=np.zeros(2)), "under 'pair' of 2 parts"),
        (broken(arm={"angles": np.full((2, 2), np.nan), "on": np.zeros(2)}), "under 'arm' under 'angles' of Box"),
        (broken(arm={"angles": np.zeros((2, 2)), "on": np.full(2, 2)}), "under 'arm' under 'on' of MultiBinary"),
    ],
)
def test_what_is_no_observation_is_refused_with_its_key(observation: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        as_batch(NESTED, observation)


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [((42, 42, 3), np.float32, True), ((42, 42, 3), np.uint8, False), ((5, 5, 2), np.float32, False)],
)
def test_images_in_floating_point_are_said_to_be_taken_as_numbers(
    shape: tuple[int, ...], dtype: Any, said: bool
) -> None:
    """An environment of such observations trained a file of 450 MB without a word."""

    class Pictured(gymnasium.Env[Any, Any]):
        observation_space = Box(0, 1, shape, dtype)
        action_space = Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(shape, dtype), {}

    environment = make_vec(Pictured, 1)
    assert any("look like images" in note for note in environment.notes) == said
    environment.close()
