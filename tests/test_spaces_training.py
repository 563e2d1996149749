"""Training, use and files of policies on every sort of space."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor, nn

import acktr
from acktr.agents import checkpoint
from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.encoders import DictEncoder, Encoder
from acktr.agents.networks import DictTorso, build_torso
from acktr.agents.part import Part
from acktr.agents.play import evaluate_file
from acktr.agents.policy import ActorCritic
from acktr.agents.policy_files import export, load_policy
from acktr.agents.rollout import Rollout
from acktr.agents.runs import build_policy
from acktr.agents.settings import Settings
from acktr.envs.make import make_vec
from acktr.errors import RunError, UserError

BITS = MultiBinary([2, 2])
CHOICES = MultiDiscrete([[3, 2], [4, 2]], start=[[1, 0], [0, -3]])
BOX = Box(np.array([-1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32))


class Recall(gymnasium.Env[Any, Any]):
    """Four contexts, each with an action of its own; reward 1 for the whole of it, in parts for parts of it."""

    def __init__(self, action_space: Any) -> None:
        self.observation_space = Discrete(4)
        self.action_space = action_space
        self.action_space.seed(7)
        self.answers = [self.action_space.sample() for _ in range(4)]
        self.count = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count, self.context = 0, int(self.np_random.integers(4))
        return self.context, {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        answer = self.answers[self.context]
        if isinstance(self.action_space, Box):
            gap = (action - answer) / (self.action_space.high - self.action_space.low)
            reward = float(1 - 8 * np.square(gap).mean())
        else:
            reward = float((action == answer).mean())
        self.count, self.context = self.count + 1, int(self.np_random.integers(4))
        return self.context, reward, False, self.count == 10, {}


class Both(gymnasium.Env[Any, Any]):
    """An image says what the first number of the action is to be, a vector the second."""

    observation_space = Dict(
        {"type": Box(0, 255, (40, 36, 1), np.uint8), "keys": Box(-np.inf, np.inf, (1,)), "noise": MultiDiscrete([2, 3])}
    )
    action_space = MultiDiscrete([2, 2])

    def __init__(self, strange: bool = False) -> None:
        self.count, self.strange = 0, strange

    def observation(self) -> dict[str, Any]:
        self.sides = self.np_random.integers(2, size=2)
        image = np.zeros((40, 36, 1), np.uint8)
        image[:, 18 * self.sides[0] : 18 * self.sides[0] + 18] = 255
        sign = 50 + 20 * self.sides[1] + self.np_random.normal()
        vector = np.array([np.nan if self.strange and self.count == 7 else sign], np.float32)
        return {"type": image, "keys": vector, "noise": self.np_random.integers([2, 3])}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return self.observation(), {}

    def step(self, action: Any) -> Any:
        reward = float((action == self.sides).mean())
        self.count += 1
        return self.observation(), reward, False, self.count == 10, {}


SMALL: dict[str, Any] = {"conv_channels": (4, 8, 8), "conv_features": 32, "num_envs": 8, "num_steps": 10}


@pytest.mark.parametrize("agent", [acktr.ACKTR, acktr.A2C])
@pytest.mark.parametrize(
    ("space", "options"),
    [
        (CHOICES, {}),
        (BITS, {}),
        (BOX, {}),
        (BOX, {"state_dependent_std": True, "log_std_init": -0.5}),
        (BOX, {"squash_actions": True, "state_dependent_std": True}),
    ],
    ids=["choices", "bits", "box", "state-dependent", "squashed"],
)
def test_both_algorithms_learn_the_answer_of_every_context(agent: Any, space: Any, options: dict[str, Any]) -> None:
    fast: dict[str, Any] = {"lr": 1.0, "max_kl": 0.01, "inverse_interval": 5} if agent is acktr.ACKTR else {"lr": 3e-3}
    fast |= {"lr_schedule": "constant", "entropy_coef": 0.02, "gamma": 0.0, "num_threads": 1}
    trained = agent(lambda: Recall(space), num_envs=16, num_steps=5, **fast, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # K-FAC names what it cannot factor in one
        trained.learn(4000)
    assert trained.evaluate(16)["return_mean"] > (6.5 if isinstance(space, Box) else 9), "by chance 3 and 4 to 5"
    actions = trained.predict(np.arange(4), deterministic=True)
    assert actions.dtype == space.dtype
    assert all(space.contains(action) for action in actions)


def both(**options: Any) -> acktr.ACKTR:
    # float32: what learns to a threshold here is to do so on every processor
    fixed: dict[str, Any] = {"num_threads": 1, "precision": "float32", "gamma": 0.0, "gae_lambda": 1.0}
    return acktr.ACKTR(Both, preset="image", **{**fixed, **SMALL, **options})


def test_image_and_vector_are_learnt_from_together_and_every_layer_has_curvature() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = both(lr=0.5, max_kl=0.01, lr_schedule="constant", entropy_coef=0.0, normalize_observations=True)
        agent.learn(3000)
    assert agent.evaluate(16)["return_mean"] > 9, "by chance 5; 7.5 from one of the two alone"
    updater = agent._trainer.updater
    assert isinstance(updater, ACKTRUpdater)
    factored = {name for unit in updater.actor.optimizer.units for name in [unit.name]}
    layers = {name for name, module in agent.policy.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert factored == layers
    assert all(bool(unit.block.to_dense().abs().sum() > 0) for unit in updater.actor.optimizer.units)


def test_a_policy_of_a_dict_goes_through_files_and_predicts_the_same(tmp_path: Path) -> None:
    agent = both(normalize_observations=True).learn(320)
    observations = [Both().reset(seed=seed)[0] for seed in range(4)]
    batch = {key: np.stack([row[key] for row in observations]) for key in observations[0]}
    actions = agent.predict(batch, deterministic=True)
    assert [agent.predict(row, deterministic=True).tolist() for row in observations] == actions.tolist()
    agent.save(tmp_path / "agent.safetensors")
    export(tmp_path / "agent.safetensors", tmp_path / "policy.safetensors")
    for file in ("agent.safetensors", "policy.safetensors"):
        loaded = acktr.load(tmp_path / file, env=Both)
        np.testing.assert_array_equal(loaded.predict(batch, deterministic=True), actions)
        assert loaded.evaluate(3, seed=5)["returns"] == agent.evaluate(3, seed=5)["returns"]
    for one, two in zip(loaded.policy.buffers(), agent.policy.buffers(), strict=True):
        assert torch.equal(one, two)


def test_two_runs_on_a_dict_are_equal_to_the_byte(tmp_path: Path) -> None:
    for name in ("one", "two"):
        agent = both(normalize_observations=True, seed=4).learn(240)
        agent._trainer.wall_time = 0.0
        agent.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_run_on_registered_spaces_is_exported_and_evaluated_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = gymnasium.envs.registration.EnvSpec(
        "Recall-v0", entry_point=lambda: Recall(BOX), max_episode_steps=10, disable_env_checker=True
    )
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    agent = acktr.ACKTR("Recall-v0", squash_actions=True, num_envs=4, num_threads=1).learn(200)
    agent.save(tmp_path / "agent")
    export(tmp_path / "agent", tmp_path / "policy")
    options: dict[str, Any] = {"episodes": 4, "deterministic": None, "seed": 1, "num_envs": None, "device": "cpu"}
    found = evaluate_file(tmp_path / "policy", **options)
    assert found["returns"] == agent.evaluate(4, seed=1)["returns"]
    loaded = load_policy(tmp_path / "policy", torch.device("cpu")).policy
    actions = loaded.act(torch.arange(4), deterministic=True)
    assert bool((actions.abs() < 1).all())
    other = gymnasium.envs.registration.EnvSpec("Recall-v0", entry_point=lambda: Recall(CHOICES), max_episode_steps=10)
    monkeypatch.setitem(gymnasium.registry, spec.id, other)
    with pytest.raises(UserError, match="trained on Recall-v0"):
        evaluate_file(tmp_path / "policy", **options)


def test_a_policy_is_refused_for_a_dict_that_differs_naming_the_key(tmp_path: Path) -> None:
    class Wider(Both):
        observation_space = Dict({**Both.observation_space.spaces, "keys": Box(-1, 1, (2,))})

    class Fewer(Both):
        observation_space = Dict({"type": Both.observation_space["type"]})

    both().save(tmp_path / "agent")
    with pytest.raises(UserError, match=r"under 'keys' Box\(.*that of 'Wider' is Box\(-1.0, 1.0, \(2,\)"):
        acktr.load(tmp_path / "agent", env=Wider)
    with pytest.raises(UserError, match=r"of the keys \['keys', 'noise', 'type'\]; that of 'Fewer' is \['type'\]"):
        acktr.load(tmp_path / "agent", env=Fewer)


def test_an_observation_that_is_no_number_is_reported_with_its_key() -> None:
    made: list[Both] = []

    def second_is_strange() -> Both:
        made.append(Both(strange=len(made) > 2))  # the first two are looked at and closed
        return made[-1]

    agent = acktr.ACKTR(second_is_strange, num_threads=1, log_interval=1, **SMALL)
    with pytest.raises(RunError, match="an observation that is not finite under 'keys', in environment 1"):
        agent.learn(800)


def test_rows_that_are_no_transition_do_not_reach_the_network_through_a_dict() -> None:
    class Poisoned(Both):
        """Gives no number in the very last observation, which a NEXT_STEP dummy row acts on."""

        def observation(self) -> dict[str, Any]:
            found = super().observation()
            return {**found, "keys": np.full(1, np.nan, np.float32)} if self.count == 10 else found

        def step(self, action: Any) -> Any:
            observation, reward, _, ended, info = super().step(action)
            return observation, reward, ended, False, info

    agent = acktr.ACKTR(Poisoned, num_threads=1, log_interval=1, **SMALL)
    trainer = agent._trainer
    trainer.collector.restart()
    trainer._collect()
    batch = trainer._collect()
    assert batch.weights is not None
    assert isinstance(batch.observations, dict)
    assert bool(torch.isfinite(batch.observations["keys"]).all())
    assert bool((batch.observations["keys"][batch.weights == 0] == 0).all())
    agent.learn(800)
    assert agent._trainer.updater.counters()["skipped_batches"] == 0


def test_a_torso_of_ones_own_gets_the_encoded_observations_by_key() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 12)

        def forward(self, encoded: dict[str, Tensor]) -> Tensor:
            assert list(encoded) == ["keys", "noise", "type"]
            assert encoded["type"].shape[1:] == (1, 40, 36)
            return torch.tanh(self.layer(torch.cat([encoded["keys"], encoded["noise"]], 1)))

    agent = acktr.ACKTR(Both, torso=Own(), num_threads=1, **SMALL).learn(160)
    assert agent.policy.own_torso
    with pytest.raises(UserError, match=r"does not take observations of shape \{'keys': \(2, 1\), 'noise': \(2, 5\)"):
        acktr.ACKTR(Both, torso=nn.Linear(3, 2), **SMALL)


def test_choices_are_encoded_as_one_hot_and_bits_as_numbers() -> None:
    rows = torch.tensor([[1, 2], [0, 0]])
    assert Encoder(MultiDiscrete([2, 3]))(rows).tolist() == [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0]]
    assert Encoder(MultiDiscrete([3, 3]))(rows).tolist() == [[0, 1, 0, 0, 0, 1], [1, 0, 0, 1, 0, 0]]
    assert Encoder(MultiBinary(2))(torch.tensor([[0, 1]], dtype=torch.int8)).tolist() == [[0.0, 1.0]]


def test_only_the_vectors_of_a_dict_are_normalised() -> None:
    space = Dict({"a": Box(-1, 1, (2,)), "b": Discrete(2), "c": Box(0, 255, (3, 40, 40), np.uint8)})
    encoder = DictEncoder(space, normalize=True)
    assert [part.norm is not None for part in encoder.parts.values()] == [True, False, False]
    for missing in (Dict({"b": Discrete(2)}), Dict({"c": Box(0, 255, (3, 40, 40), np.uint8), "m": MultiBinary(2)})):
        with pytest.raises(UserError, match="normalize_observations"):
            DictEncoder(missing, normalize=True)


def test_the_torso_of_a_dict_follows_the_network_that_the_settings_name() -> None:
    image, vector = Box(0, 255, (1, 36, 36), np.uint8), Box(-1, 1, (3,))

    def torso(network: str, **parts: Any) -> DictTorso:
        built = build_torso(DictEncoder(Dict(parts)), Settings(env="x", network=network, hidden_sizes=(7,)))  # type: ignore[arg-type]
        assert isinstance(built, DictTorso)
        return built

    def layers(module: nn.Module) -> list[str]:
        return [type(layer).__name__ for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]

    convolutions = ["Conv2d", "Conv2d", "Conv2d", "Linear"]
    assert layers(torso("auto", a=image, b=vector)) == [*convolutions, "Linear"]
    assert layers(torso("auto", a=image, b=image)) == [*convolutions, *convolutions, "Linear"]
    assert layers(torso("nature", a=image)) == convolutions, "as an image that is no Dict"
    assert layers(torso("auto", a=vector)) == layers(torso("mlp", a=image, b=vector)) == ["Linear"]
    with pytest.raises(UserError, match="takes frames"):
        torso("nature", a=vector)


def test_a_dict_of_vectors_learns_as_the_flattened_vector_does() -> None:
    """Side by side they are one MLP's input: the same numbers in another form."""
    flat = ActorCritic(Box(-1, 1, (5,)), Discrete(3), settings := Settings(env="x"))
    parts = ActorCritic(Dict({"a": Box(-1, 1, (2,)), "b": Box(-1, 1, (3,))}), Discrete(3), settings)
    parts.load_state_dict(dict(zip(parts.state_dict(), flat.state_dict().values(), strict=True)))
    rows = torch.randn(4, 5)
    one, two = flat(rows), parts({"b": rows[:, 2:], "a": rows[:, :2]})
    assert torch.equal(one[0].logits, two[0].logits)
    assert torch.equal(one[1], two[1])


def test_a_dict_policys_file_decides_no_memory_before_its_sizes_are_known(tmp_path: Path) -> None:
    huge = {"type": "MultiDiscrete", "shape": [2], "nvec": [10**15, 3], "start": 0}
    state = both()._trainer.state_dict()
    state["protocol"].pop("own")
    state["settings"]["network"] = "mlp"
    forged = {**state, "observation_space": {"type": "Dict", "spaces": {"keys": huge}}}
    checkpoint.save(tmp_path / "f", forged, kind="checkpoint")
    with pytest.raises(UserError, match=r"network has|names differ"):
        load_policy(tmp_path / "f", torch.device("cpu"))


def test_storage_is_made_once_for_every_key() -> None:
    environment = make_vec(Both, 3)
    rollout = Rollout(
        num_steps=4, part=Part.whole(3), observation_space=environment.observation_space, device=torch.device("cpu")
    )
    assert isinstance(rollout.observations, dict)
    before = {name: leaf.data_ptr() for name, leaf in rollout.observations.items()}
    shapes = {name: (leaf.dtype, tuple(leaf.shape)) for name, leaf in rollout.observations.items()}
    assert shapes == {
        "keys": (torch.float32, (5, 3, 1)),
        "noise": (torch.int64, (5, 3, 2)),
        "type": (torch.uint8, (5, 3, 1, 40, 36)),
    }
    policy = build_policy(Settings(env="x", **{**SMALL, "num_envs": 3}), environment, torch.device("cpu"))
    rollout.start(environment.reset([0, 1, 2]))
    for index in range(4):
        actions, outcomes, values = policy.act_and_value(rollout.observed(index), generator=None)
        step = environment.step(actions.numpy())
        rollout.store(index, actions=outcomes, values=values, rewards=step.rewards, step=step)
    rollout.finish(policy, gamma=0.9, gae_lambda=0.9)
    assert {name: leaf.data_ptr() for name, leaf in rollout.observations.items()} == before
