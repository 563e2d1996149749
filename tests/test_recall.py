"""Learning on what the layers gave while acting equals learning on a second forward pass."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import acktr
from acktr.agents import presets
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.precision import choose_precision
from acktr.agents.recall import Recall, recallable
from acktr.agents.reporting import Reporter
from acktr.agents.rollout import Batch
from acktr.agents.runs import build_policy, build_updater, make_environment
from acktr.agents.settings import Settings
from acktr.agents.streams import Streams
from acktr.agents.trainer import Trainer
from acktr.errors import UserError
from acktr.kfac import mean_kl

STEPS, ENVS = 3, 2
CPU = torch.device("cpu")


def policy_on(space: spaces.Space[Any], **options: Any) -> ActorCritic:
    """A small convolutional policy over four actions."""
    torch.manual_seed(0)
    options = {"conv_channels": (4, 6, 3), "conv_features": 8, "hidden_sizes": (5,), "policy_gain": 1.0, **options}
    return ActorCritic(space, spaces.Discrete(4), Settings(env="x", **options))


def pictures(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, "uint8")


POLICIES: dict[str, Callable[[], ActorCritic]] = {
    "nature": lambda: policy_on(pictures(3, 40, 36), network="nature"),
    "small-conv": lambda: policy_on(pictures(3, 11, 9), network="small-conv", conv_channels=(4, 6)),
    "two torsos": lambda: policy_on(pictures(3, 40, 36), network="nature", shared_trunk=False),
    "a picture among vectors": lambda: policy_on(
        spaces.Dict(picture=pictures(2, 36, 40), vector=spaces.Box(-1, 1, (3,))), network="auto"
    ),
}


def random_rows(policy: ActorCritic) -> Any:
    """Observations (STEPS · ENVS, ...) as the policy takes them raw."""
    size = STEPS * ENVS
    if policy.encoder.space_shape:
        return torch.randint(0, 256, (size, *policy.encoder.space_shape), dtype=torch.uint8)
    return {"picture": torch.randint(0, 256, (size, 2, 36, 40), dtype=torch.uint8), "vector": torch.randn(size, 3)}


def at(rows: Any, chosen: Tensor | slice) -> Any:
    return {name: leaf[chosen] for name, leaf in rows.items()} if isinstance(rows, dict) else rows[chosen]


def recorded(policy: ActorCritic, rows: Any) -> Recall:
    """What the policy gives step by step, kept."""
    recall = Recall(num_steps=STEPS, num_envs=ENVS)
    with torch.no_grad():
        for step in range(STEPS):
            with recall.recording(step):
                policy(at(rows, slice(step * ENVS, (step + 1) * ENVS)))
    return recall


def gradients(policy: ActorCritic, rows: Any) -> list[Tensor]:
    """Logits, values and the gradients of some loss of both."""
    policy.zero_grad()
    distribution, values = policy(rows)
    (torch.sin(distribution.logits).sum() + values.square().sum()).backward()  # type: ignore[attr-defined]
    found = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    return [distribution.logits.detach(), values.detach(), *found]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("chosen", [slice(None), torch.tensor([0, 3, 4])], ids=["all rows", "some rows"])
@pytest.mark.usefixtures("float64")
def test_gradients_equal_those_of_a_second_forward_pass(name: str, chosen: Any) -> None:
    policy = POLICIES[name]()
    rows = random_rows(policy)
    plain = gradients(policy, at(rows, chosen))
    recall = recorded(policy, rows)
    for _ in range(2):  # an activation in place may not spoil what is kept
        with recall.replaying(chosen):
            again = gradients(policy, at(rows, chosen))
        for one, other in zip(plain, again, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_outputs_are_taken_and_not_computed() -> None:
    policy = POLICIES["nature"]()
    rows = random_rows(policy)
    recall = recorded(policy, rows)
    found = []
    for frames in (rows, torch.zeros_like(rows)):
        with torch.no_grad(), recall.replaying(slice(None)):
            found.append(policy(frames)[1])
    assert torch.equal(*found)


def test_weights_that_changed_make_it_invalid_and_a_new_rollout_valid() -> None:
    policy = POLICIES["nature"]()
    rows = random_rows(policy)
    recall = Recall(num_steps=STEPS, num_envs=ENVS)
    assert not recall.is_valid
    with recall.recording(0), torch.no_grad():
        policy(at(rows, slice(0, ENVS)))
    assert not recall.is_valid  # two steps are missing
    recall = recorded(policy, rows)
    assert recall.is_valid
    with torch.no_grad():
        policy.policy_head.logits.weight.add_(1)  # type: ignore[union-attr, operator]
    assert not recall.is_valid
    recall = recorded(policy, rows)
    with torch.no_grad():
        policy.value_head.bias.add_(1)
    assert not recall.is_valid
    batch = Batch(
        observations=rows,
        actions=torch.zeros(6),
        advantages=torch.zeros(6),
        returns=torch.zeros(6),
        weights=None,
        valid_rows=6,
        part=Part.whole(ENVS),
        recall=recall,
    )
    with torch.no_grad(), batch.replaying(slice(None)):  # computed anew
        assert torch.equal(policy(rows)[1], policy(rows)[1])
        assert not torch.equal(policy(rows)[1], policy(torch.zeros_like(rows))[1])


def hooked(module: nn.Module) -> nn.Module:
    """With a hook that changes the output in place, which a replay would do once more."""
    module.register_forward_hook(lambda module, inputs, output: output.mul_(2))
    return module


@pytest.mark.parametrize(
    "torso",
    [
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(), nn.Flatten()),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten()),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ELU(inplace=True), nn.Flatten()),  # would overwrite what is kept
        nn.Sequential(nn.Flatten(), nn.Linear(9, 2)),  # nothing to gain
        nn.Sequential(nn.Conv2d(1, 2, 4, padding="same"), nn.Flatten()),  # padded more on one side
        nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(1, 2, 3)), nn.Flatten()),  # a new weight at every call
        hooked(nn.Conv2d(1, 2, 3)),
    ],
    ids=["dropout", "batch norm", "in place", "no convolution", "padding", "spectral norm", "hook"],
)
def test_networks_whose_rows_depend_on_one_another_are_left_alone(torso: nn.Module) -> None:
    assert not recallable(torso)


def test_the_networks_of_this_package_are_recalled() -> None:
    assert all(recallable(make().torso) for make in POLICIES.values())
    assert recallable(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ELU(), nn.Flatten()))


def trainer(algorithm: str, **options: Any) -> Trainer:
    """Four small emulators and a small network."""
    chosen = {"num_envs": 4, "num_steps": 5, "conv_channels": (4, 6, 3), "conv_features": 16, "kl_interval": 1}
    asked = {"env": "PongNoFrameskip-v4", "algorithm": algorithm, **chosen, **options}
    settings = presets.resolve(asked).settings()
    environment = make_environment(settings)
    streams = Streams(0, CPU)
    streams.seed_globals()
    policy = build_policy(settings, environment, CPU)
    updater = build_updater(settings, policy, streams)
    reporter = Reporter(None, settings, console=False)
    made = Trainer(settings, environment, policy, updater=updater, streams=streams, reporter=reporter, folder=None)
    made.collector.restart()
    return made


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("acktr", {}),
        ("acktr", {"stat_interval": 2}),
        ("acktr", {"stat_fraction": 1.0}),
        ("acktr", {"conv_features": 64}),  # wide enough for its gradient to stay rows
        ("acktr", {"shared_trunk": False, "critic_iterations": 2, "critic_max_kl": 0.1}),
        ("a2c", {"num_steps": 5}),
    ],
    ids=["acktr", "rare statistics", "statistics of all rows", "wide layer", "critic of two steps", "a2c"],
)
def test_training_equals_that_of_the_plain_path(algorithm: str, options: dict[str, Any]) -> None:
    """Float32, in which a batch of four rows and one of twenty differ in the last bits, and steps add that up."""
    plain = trainer(algorithm, precision="float32", reuse_forward=False, **options)
    recalling = trainer(algorithm, precision="float32", **options)
    for _ in range(3):
        reports = [each.updater.update(each._collect(), progress=0.1) for each in (plain, recalling)]
        for name, figure in reports[0].figures.items():
            torch.testing.assert_close(figure, reports[1].figures[name], rtol=2e-3, atol=1e-5, msg=name)
    assert plain._collect().recall is None
    assert recalling._collect().forward_is_known
    for one, other in zip(plain.policy.parameters(), recalling.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid", 1])
def test_a_torso_of_ones_own_trains_alike_on_either_path(padding: Any) -> None:
    """A linear layer on three axes, whose rows are not the batch's, and paddings that go by name."""

    def torso() -> nn.Module:
        torch.manual_seed(0)
        first = nn.Conv2d(4, 6, 8, 8, padding=0 if padding == "same" else padding)
        second = nn.Conv2d(6, 4, 3, padding=padding)
        return nn.Sequential(first, nn.ReLU(), second, nn.Flatten(2), nn.LazyLinear(40), nn.Tanh(), nn.Flatten())

    moved = []
    for reuses in (True, False):
        made = torso()
        made(torch.zeros(1, 4, 84, 84))
        options: dict[str, Any] = {"num_envs": 2, "num_steps": 4, "num_threads": 1, "precision": "float32"}
        agent = acktr.ACKTR("PongNoFrameskip-v4", torso=made, seed=3, reuse_forward=reuses, **options)
        agent._trainer.collector.restart()
        for _ in range(3):  # from the second on there are inverses, and gradients may stay rows
            agent._trainer.updater.update(agent._trainer._collect(), progress=0.1)
        moved.append(torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()]))
        agent.close()
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{"shared_trunk": False}, {"exploration": "noisy-kfac"}], ids=str)
def test_what_no_update_can_use_is_not_kept(options: dict[str, Any]) -> None:
    """The actor's step changes weights before the critic learns; drawn weights act that are not those that learn."""
    made = trainer("acktr", **options)
    recall = made._collect().recall
    kept = set() if recall is None else {use[0] for use in recall._outputs}
    value_torso = made.policy.value_torso
    assert not kept & {id(parameter) for parameter in (() if value_torso is None else value_torso.parameters())}
    assert bool(kept) == ("exploration" not in options)


def test_outputs_of_layers_that_are_gone_are_forgotten() -> None:
    recall = Recall(num_steps=1, num_envs=2)
    layers = [nn.Conv2d(1, 2, 3) for _ in range(4)]  # all alive, so that no identity comes twice
    for layer in layers:
        with recall.recording(0), torch.no_grad():
            layer(torch.zeros(2, 1, 5, 5))
    assert len(recall._outputs) <= 2


def test_bfloat16_makes_the_same_step_up_to_its_rounding() -> None:
    precise, coarse = (trainer("acktr", precision=name) for name in ("float32", "bfloat16"))
    coarse.policy.load_state_dict(copy.deepcopy(precise.policy.state_dict()))
    batch = precise._collect()
    again = coarse._collect()
    before = precise.policy.distribution(batch.observations)
    for each, made in ((precise, batch), (coarse, again)):
        each.updater.update(made, progress=0.1)
    moved = [each.policy.distribution(batch.observations) for each in (precise, coarse)]
    apart, step = mean_kl(moved[0], moved[1]), mean_kl(before, moved[0])
    assert step > 1e-8
    assert apart < 0.1 * step
    assert all(parameter.dtype == torch.float32 for parameter in coarse.policy.parameters())
    assert coarse.policy(batch.observations)[1].dtype == torch.float32


def test_bfloat16_is_chosen_for_convolutions_on_processors_that_have_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(env="x")
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    for native in (True, False):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda native=native: native)
        wanted = torch.bfloat16 if native else torch.float32
        assert choose_precision(settings, CPU, convolutional=True)[0] == wanted
        assert choose_precision(settings, CPU, convolutional=False)[0] == torch.float32
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    torch.set_default_dtype(torch.float64)  # of the parameters, which have no bfloat16 beside them
    try:
        assert choose_precision(settings, CPU, convolutional=True)[0] == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    asked = Settings(env="x", precision="bfloat16")
    assert choose_precision(asked, CPU, convolutional=False)[0] == torch.bfloat16
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: False)
    with pytest.raises(UserError, match="float32"):
        choose_precision(asked, torch.device("cuda"), convolutional=True)
