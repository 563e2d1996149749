"""`acktr curvature`: matrices and errors against autograd, correlations of known fields, files and error messages."""

import csv
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from oracles import dense_fisher as autograd_fisher
from torch import Tensor, nn
from torch.distributions import Categorical

import acktr
from acktr.agents import checkpoint, curvature_dense, curvature_pictures, curvature_report, curvature_states
from acktr.agents.curvature_assumptions import Autocorrelation, assumptions_of, correlation
from acktr.agents.curvature_capture import Captured
from acktr.agents.curvature_dense import (
    block_averages,
    choose_parts,
    dense_fisher,
    inverses,
    tridiagonal_inverse,
)
from acktr.agents.curvature_report import check_size, curvature_file, report
from acktr.agents.curvature_states import FisherKind, Network, networks_of, value_sigma, visited_states
from acktr.agents.policy import ActorCritic
from acktr.agents.settings import Settings
from acktr.cli import main
from acktr.envs.vector import VectorEnvironment
from acktr.errors import UserError
from acktr.kfac import KFAC, Fisher, GaussNewton, Metric, block_errors
from acktr.kfac.errors import APPROXIMATIONS, block_size, weight_errors
from acktr.kfac.layers import AFFINE_TYPES, Affine
from acktr.kfac.units import WeightUnit

SETTINGS = Settings(env="CartPole-v1", hidden_sizes=(5, 4), value_sigma=0.5, damping=0.02, critic_damping=0.3)
SMALL = {"hidden_sizes": (5, 4), "num_envs": 2, "num_threads": 1}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def networks(*, gaussian: bool = False, shared: bool = False, states: int = 12, **changes: Any) -> list[Network]:
    torch.manual_seed(0)
    settings = Settings.from_dict({**SETTINGS.to_dict(), "shared_trunk": shared, "policy_gain": 1.0, **changes})
    actions: gymnasium.Space[Any] = Box(-1, 1, (2,)) if gaussian else Discrete(3)
    policy = ActorCritic(Box(-np.inf, np.inf, (3,)), actions, settings)
    return networks_of(policy, torch.randn(states, 3), settings, sigma=0.5, damping=None, seed=0)


def convolutional(module: nn.Sequential, inputs: Tensor) -> Network:
    """A network of one's own in float64, ending in a classifier of three."""

    def metric(kind: FisherKind) -> Metric:
        generator = torch.Generator().manual_seed(0)
        distribution = Categorical(logits=module(inputs), validate_args=False)
        return Fisher(distribution=distribution, kind=kind, generator=generator)

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, AFFINE_TYPES)}
    chain = [[name] for name in layers]
    return Network(name="joint", layers=layers, metric=metric, damping=0.1, sigma=None, chain=chain)


def small_convolutional() -> Network:
    torch.manual_seed(2)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 3, 2, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(18, 3),
    )
    return convolutional(module.double(), torch.randn(9, 2, 6, 4, dtype=torch.float64))


def autograd_matrix(network: Network) -> Tensor:
    """The exact Fisher of all layers, rows of (weight, bias) one behind the other, with no formula of this project."""
    parameters = [parameter for layer in network.layers.values() for parameter in layer.parameters()]
    dense = autograd_fisher(network.metric("exact").losses(), parameters)
    order: list[Tensor] = []
    start = 0
    for layer in network.layers.values():
        entries = torch.arange(start, start + layer.weight.numel()).reshape(len(layer.weight), -1)
        start += layer.weight.numel()
        if layer.bias is not None:
            entries = torch.cat((entries, torch.arange(start, start + len(layer.bias))[:, None]), dim=1)
            start += len(layer.bias)
        order.append(entries.flatten())
    at = torch.cat(order)
    return dense[at][:, at]


ALL_NETWORKS: dict[str, Callable[[], Network]] = {
    "joint": lambda: networks(shared=True)[0],
    "joint-gaussian": lambda: networks(shared=True, gaussian=True)[0],
    "policy": lambda: networks()[0],
    "policy-gaussian": lambda: networks(gaussian=True)[0],
    "policy-of-two-heads": lambda: networks(gaussian=True, state_dependent_std=True)[0],
    "critic": lambda: networks()[1],
    "convolutional": small_convolutional,
}


# --- the matrices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_NETWORKS)
def test_the_exact_fisher_is_that_of_autograd(name: str) -> None:
    network = ALL_NETWORKS[name]()
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    torch.testing.assert_close(dense.exact, autograd_matrix(network).detach(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["joint", "convolutional"])
def test_taking_units_takes_rows_and_columns_of_the_whole(name: str) -> None:
    network = ALL_NETWORKS[name]()
    captured = Captured(network, "exact")
    whole = dense_fisher(captured, choose_parts(network.layers, 100))
    part = dense_fisher(captured, choose_parts(network.layers, 3))
    at: list[Tensor] = []
    start = 0
    for large, small in zip(whole.parts, part.parts, strict=True):
        assert len(small.rows) == min(3, len(large.rows))
        columns = torch.cat((small.columns, torch.tensor([large.width - 1])))
        at.append((start + small.rows[:, None] * large.width + columns).flatten())
        start += large.size
    order = torch.cat(at)
    torch.testing.assert_close(part.exact, whole.exact[order][:, order], rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(part.factored(), whole.factored()[order][:, order], rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("name", ALL_NETWORKS)
def test_diagonal_blocks_of_the_factored_matrix_are_those_of_kfac(name: str) -> None:
    network = ALL_NETWORKS[name]()
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    optimizer = KFAC(nn.ModuleList(network.layers.values()), conv_factors="reduce")
    with optimizer.capture():
        metric = network.metric("exact")
    optimizer.update_statistics(metric)
    start = 0
    for unit, size in zip(optimizer.units, dense.sizes, strict=True):
        block = dense.factored()[start : start + size, start : start + size]
        start += size
        torch.testing.assert_close(block, cast(WeightUnit, unit).block.to_dense(), rtol=1e-9, atol=1e-14)


def test_blocks_between_layers_are_products_of_moments_between_layers() -> None:
    network = networks()[0]
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    first, second, head = network.layers.values()
    seen: list[Tensor] = []
    for layer in (first, second, head):
        layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    losses = network.metric("exact").losses()
    inputs = [torch.cat((part, torch.ones(len(part), 1)), dim=1).detach() for part in seen]
    # at the output of a layer with a bias the gradient of an example is its gradient by that bias
    gradients = [
        torch.stack(
            [
                torch.stack([torch.autograd.grad(loss, layer.bias, retain_graph=True)[0] for loss in row])
                for row in losses
            ]
        )
        for layer in (first, second, head)
    ]
    starts = np.cumsum([0, *dense.sizes])
    for one in range(3):
        for other in range(3):
            A = torch.einsum("ni,nj->ij", inputs[one], inputs[other]) / 12
            G = torch.einsum("cno,cnp->op", gradients[one], gradients[other]) / 12
            block = dense.factored()[starts[one] : starts[one + 1], starts[other] : starts[other + 1]]
            torch.testing.assert_close(block, torch.kron(G, A), rtol=1e-9, atol=1e-14)


def test_policy_and_value_share_no_curvature_between_their_heads() -> None:
    network = networks(shared=True)[0]
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    assert [part.layer for part in dense.parts][-2:] == ["policy_head.logits", "value_head"]
    policy, value = dense.sizes[-2:]
    assert not dense.exact[-policy - value : -value, -value:].any()
    assert dense.factored()[-value:, -value:].norm() > 0


@pytest.mark.parametrize("name", ["joint", "policy-of-two-heads", "critic", "convolutional"])
def test_the_tridiagonal_inverse_couples_neighbours_alone(name: str) -> None:
    """What it is the inverse of equals the damped factored matrix on neighbouring blocks, two heads being one."""
    network = ALL_NETWORKS[name]()
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    assert network.chain is not None
    found = inverses(dense, 0.05, network.chain)["block-tridiagonal"]
    expected = dense.factored(0.05)
    own = {part.layer: part.size for part in dense.parts}
    sizes = [sum(own[layer] for layer in link) for link in network.chain]
    at = [slice(int(end) - size, int(end)) for end, size in zip(np.cumsum(sizes), sizes, strict=True)]
    implied = torch.linalg.inv(found)
    for one, rows in enumerate(at):
        for other, columns in enumerate(at):
            if abs(one - other) <= 1:
                torch.testing.assert_close(implied[rows, columns], expected[rows, columns], rtol=1e-7, atol=1e-11)
            else:
                assert not found[rows, columns].any()
    assert torch.linalg.eigvalsh(found).min() > 0


@pytest.mark.parametrize("name", ["policy", "critic", "convolutional"])
def test_the_tridiagonal_inverse_is_that_of_kfac(name: str) -> None:
    network = ALL_NETWORKS[name]()
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    optimizer = KFAC(nn.ModuleList(network.layers.values()), structure="block-tridiagonal")
    with optimizer.capture():
        metric = network.metric("exact")
    optimizer.update_statistics(metric)
    (unit,) = optimizer.units
    unit.block.refresh(0.05)
    direction = torch.randn(len(dense.exact), dtype=torch.float64)
    expected = inverses(dense, 0.05, network.chain)["block-tridiagonal"] @ direction
    torch.testing.assert_close(unit.block.precondition(direction, 0.05), expected, rtol=1e-7, atol=1e-10)


def test_inverses_are_of_what_they_say() -> None:
    network = networks(shared=True)[0]
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    found = inverses(dense, 0.05, None)
    assert list(found) == ["exact", "factored", "block-diagonal"]
    identity = torch.eye(len(dense.exact), dtype=torch.float64)
    torch.testing.assert_close(found["exact"] @ (dense.exact + 0.05 * identity), identity, rtol=0, atol=1e-9)
    torch.testing.assert_close(found["factored"] @ dense.factored(0.05), identity, rtol=0, atol=1e-9)
    start = 0
    for size in dense.sizes:
        part = slice(start, start + size)
        start += size
        inverse = found["block-diagonal"][part, part]
        torch.testing.assert_close(inverse @ dense.factored(0.05)[part, part], identity[part, part], rtol=0, atol=1e-9)
    assert int((found["block-diagonal"] != 0).sum()) <= sum(size**2 for size in dense.sizes)


def test_a_matrix_that_has_a_tridiagonal_inverse_is_inverted_exactly() -> None:
    torch.manual_seed(0)
    precision = torch.zeros(9, 9, dtype=torch.float64)
    for low, high in ((0, 5), (2, 9)):
        root = torch.randn(high - low, high - low, dtype=torch.float64)
        precision[low:high, low:high] += root @ root.T + torch.eye(high - low, dtype=torch.float64)
    assert not precision[:2, 5:].any()
    torch.testing.assert_close(tridiagonal_inverse(precision.inverse(), [2, 3, 4]), precision, rtol=1e-8, atol=1e-9)


def test_block_averages_are_of_absolute_values() -> None:
    matrix = torch.tensor([[1.0, -1.0, 3.0], [1.0, -1.0, -3.0], [0.0, 2.0, -7.0]])
    assert block_averages(matrix, [2, 1]).tolist() == [[1, 3], [1, 7]]


def test_as_many_units_are_taken_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    layers: dict[str, Affine] = {str(number): nn.Linear(50, 50) for number in range(4)}
    assert {len(part.rows) for part in choose_parts(layers, None)} == {20}
    monkeypatch.setattr(curvature_dense, "LARGEST", 4 * 7 * 8)
    parts = choose_parts(layers, None)
    assert {(len(part.rows), part.width) for part in parts} == {(7, 8)}
    assert parts[0].rows.tolist() == parts[1].columns.tolist(), "what is taken of a layer is an input of the next"
    with pytest.raises(UserError, match=r"--units 8 would make matrices of 288 parameters, above the 224 .* 7$"):
        choose_parts(layers, 8)


# --- the errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exact", "sampled"])
@pytest.mark.parametrize("name", ["joint", "policy-of-two-heads", "convolutional"])
def test_batches_of_named_layers_are_those_of_a_whole_model(name: str, kind: FisherKind) -> None:
    network = ALL_NETWORKS[name]()
    model = nn.ModuleList(network.layers.values())
    expected = block_errors(model, lambda: network.metric(kind), conv_factors=["expand", "reduce"])
    found = [
        dataclasses.replace(error, layer=str(number))
        for number, (_, batch) in enumerate(Captured(network, kind).batches(network.layers))
        for error in weight_errors(batch, ["expand", "reduce"])
    ]
    assert found == expected


def test_the_size_of_a_block_is_that_of_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces too: gradients come a few examples at a time, and inner products in rows."""
    from acktr.kfac import errors, statistics

    monkeypatch.setattr(statistics, "_CHUNK_ELEMENTS", 600)
    monkeypatch.setattr(errors, "_ROWS", 4)
    network = small_convolutional()
    start = 0
    whole = autograd_matrix(network)
    for (_, batch), layer in zip(
        Captured(network, "exact").batches(network.layers), network.layers.values(), strict=True
    ):
        size = sum(parameter.numel() for parameter in layer.parameters())
        block = whole[start : start + size, start : start + size]
        start += size
        assert block_size(batch) == pytest.approx((float(block.square().sum()), float(block.trace())), rel=1e-9)


def test_a_layer_without_gradients_has_no_errors_and_breaks_nothing(tmp_path: Path) -> None:
    agent = acktr.ACKTR("CartPole-v1", seed=0, **SMALL)
    with torch.no_grad():
        agent._trainer.policy.policy_head.get_submodule("logits").weight.zero_()
    agent.save(tmp_path / "policy")
    result = run(tmp_path / "policy", states=8, units=3)
    layers = result["networks"][0]["layers"]
    assert {error["relative"] for error in layers[0]["errors"]} == {None}
    assert all(error["relative"] is not None for error in layers[-1]["errors"])
    lines = [line.split() for line in report(result, 100).splitlines()]
    assert ["torso.1", "-", "-", "-", "-", "-"] in lines


# --- the assumptions -------------------------------------------------------------------------------------------------


def test_white_noise_correlates_with_itself_at_no_offset() -> None:
    torch.manual_seed(0)
    found = Autocorrelation()
    for _ in range(3):
        found.add(torch.randn(400, 2, 7, 12, dtype=torch.float64) * torch.tensor([1.0, 30.0])[:, None, None])
    result = found.result()
    assert result.channels == 2
    assert result.mean.shape == (7, 13), "up to half of the map each way"
    expected = torch.zeros_like(result.mean)
    expected[3, 6] = 1
    assert (result.mean - expected).abs().max() < 5 / (1200 * 2 * 4 * 6) ** 0.5
    assert result.mean[3, 6] == 1


def test_a_field_that_is_the_same_everywhere_correlates_fully_at_every_offset() -> None:
    torch.manual_seed(0)
    found = Autocorrelation()
    found.add(torch.randn(20, 3, 1, 1, dtype=torch.float64).expand(20, 3, 6, 5))
    torch.testing.assert_close(found.result().mean, torch.ones(7, 5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_autocorrelation_is_the_mean_over_pairs_of_positions() -> None:
    torch.manual_seed(0)
    maps = torch.randn(5, 1, 4, 6, dtype=torch.float64) + torch.arange(6.0)
    found = Autocorrelation()
    found.add(maps[:2])
    found.add(maps[2:])
    result = found.result()
    for down in (-2, 0, 1):
        for across in (-3, -1, 0, 2):
            products = [
                maps[:, 0, row, column] * maps[:, 0, row + down, column + across]
                for row in range(4)
                for column in range(6)
                if 0 <= row + down < 4 and 0 <= column + across < 6
            ]
            expected = torch.stack(products).mean() / maps.square().mean()
            assert float(result.mean[2 + down, 3 + across]) == pytest.approx(float(expected), rel=1e-10)


def test_channels_of_opposite_sign_cancel_in_the_mean_alone_and_dead_ones_do_not_count() -> None:
    stripes = (-1.0) ** torch.arange(8).expand(1, 8, 8).double()  # changes sign from column to column
    found = Autocorrelation()
    found.add(torch.stack((stripes, torch.ones_like(stripes), torch.zeros_like(stripes)), dim=1))
    result = found.result()
    assert result.channels == 2
    assert float(result.mean[4, 5]) == pytest.approx(0, abs=1e-12)
    assert float(result.mean_absolute[4, 5]) == pytest.approx(1)
    nothing = Autocorrelation()
    nothing.add(torch.zeros(2, 3, 4, 4))
    assert nothing.result().channels == 0
    assert nothing.result().mean.isnan().all()


class Pooled(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


def test_derivatives_that_are_the_same_everywhere_add_up() -> None:
    """Behind a mean over positions they are: SUD fails by the number of positions, SH of the derivatives holds."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 2), Pooled()).double()
    network = convolutional(module, torch.randn(30, 1, 4, 5, dtype=torch.float64))
    found = assumptions_of(network, Captured(network, "exact"))["0"]
    assert found.positions == 12
    assert found.sud == pytest.approx(12)
    assert found.sh_derivatives == pytest.approx(0, abs=1e-9)
    assert found.sh_activations is not None
    assert 0 < found.sh_activations < 0.5, "noise has the same power everywhere, up to chance"
    assert found.derivatives is not None
    assert found.derivatives.mean.min() == pytest.approx(1)


def test_activations_are_correlated_less_their_mean() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(243, 3)).double()
    noise = 1e6 + torch.randn(200, 1, 10, 10, dtype=torch.float64)
    network = convolutional(module, torch.cat((noise, torch.full_like(noise, 1 / 3)), dim=1))
    activations = assumptions_of(network, Captured(network, "exact"))["0"].activations
    assert activations is not None
    assert activations.channels == 1, "the other one is constant"
    assert float(activations.mean[5, 6]) == pytest.approx(0, abs=0.05)


def test_independence_is_the_correlation_of_squared_norms() -> None:
    torch.manual_seed(0)
    one = torch.rand(1000, dtype=torch.float64)
    assert correlation(one, 3 - 2 * one) == pytest.approx(-1)
    assert correlation(one, torch.rand(1000, dtype=torch.float64)) == pytest.approx(0, abs=0.1)
    assert correlation(one, torch.full_like(one, 0.1)) is None
    network = networks()[0]
    captured = Captured(network, "exact")
    found = assumptions_of(network, captured)["torso.3"]
    squares = captured.inputs["torso.3"].square().sum(1)
    gradients = [reached["torso.3"][1].square().sum(1) for reached in captured.passes()]
    assert found.iad == pytest.approx(np.corrcoef(squares, torch.stack(gradients).sum(0))[0, 1])
    assert (found.positions, found.sud, found.sh_activations, found.activations) == (1, None, None, None)


# --- what is looked at -----------------------------------------------------------------------------------------------


class Clock(VectorEnvironment):
    """Observations say when and where they were seen; the decision at every third moment is none."""

    id, num_envs, protocol = "Clock", 2, {}
    observation_space, action_space = Box(-np.inf, np.inf, (3,)), Discrete(3)

    def __init__(self) -> None:
        self.time = 0

    def reset(self, seeds: Any) -> NDArray[np.float32]:
        self.time = 0
        return self._seen()

    def _seen(self) -> NDArray[np.float32]:
        return np.array([[self.time, env, 0] for env in range(2)], dtype=np.float32)

    def step(self, actions: NDArray[Any]) -> Any:
        valid = np.full(2, self.time % 3 != 0)
        self.time += 1
        empty = np.zeros(0)
        return acktr_step(self._seen(), valid, empty)

    def close(self) -> None:
        pass


def acktr_step(observations: NDArray[np.float32], valid: NDArray[np.bool_], empty: NDArray[Any]) -> Any:
    from acktr.envs.vector import Step

    return Step(
        observations=observations,
        rewards=np.zeros(2),
        terminals=np.zeros(2, bool),
        truncations=np.zeros(2, bool),
        valid=valid,
        final_observations=None,
        episode_returns=empty,
        episode_lengths=empty.astype(np.int64),
        episode_envs=empty.astype(np.int64),
        episode_truncated=empty.astype(bool),
    )


def test_states_are_spread_over_play_and_none_is_a_dummy_row() -> None:
    policy = ActorCritic(Clock.observation_space, Clock.action_space, SETTINGS)
    states = visited_states(policy, Clock(), states=10, deterministic=True, seed=0)
    assert isinstance(states, Tensor)
    times, envs = states[:, 0], states[:, 1]
    assert len(states) == 10
    assert (times % 3 != 0).all()
    assert times.max() > curvature_states.SPREAD / 2
    assert set(envs.tolist()) == {0, 1}
    assert len(set(times.tolist())) == 10, "environments are seen at different moments"
    many = visited_states(policy, Clock(), states=3000, deterministic=True, seed=0)
    assert len(many) == 3000


def test_the_network_sees_observations_normalised_as_in_play() -> None:
    torch.manual_seed(0)
    settings = Settings.from_dict({**SETTINGS.to_dict(), "normalize_observations": True, "shared_trunk": False})
    policy = ActorCritic(Box(-np.inf, np.inf, (3,)), Discrete(3), settings)
    states = torch.randn(20, 3) * 7 + 3
    policy.encoder.observe(states, None)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    found = networks_of(policy, states, settings, sigma=1.0, damping=None, seed=0)
    for network, layer in zip(found, ("torso.1", "value_torso.1"), strict=True):
        assert torch.equal(Captured(network, "exact").inputs[layer], policy.encoder(states).double())
    with torch.no_grad():
        played = policy.distribution(states)
    metric = found[0].metric("exact")
    assert isinstance(metric, Fisher)
    torch.testing.assert_close(metric.distribution.logits.float(), cast(Categorical, played).logits)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_policy_and_critic_are_networks_of_their_own_with_their_own_damping() -> None:
    policy, critic = networks()
    assert (policy.name, policy.damping, policy.sigma) == ("policy", 0.02, None)
    assert (critic.name, critic.damping, critic.sigma) == ("critic", 0.3, 0.5)
    assert policy.chain == [["torso.1"], ["torso.3"], ["policy_head.logits"]]
    assert critic.chain == [["value_torso.1"], ["value_torso.3"], ["value_head"]]
    (joint,) = networks(shared=True)
    assert joint.chain == [["torso.1"], ["torso.3"], ["policy_head.logits", "value_head"]]
    assert (joint.name, joint.damping, joint.sigma) == ("joint", 0.02, 0.5)
    metric = critic.metric("exact")
    assert isinstance(metric, GaussNewton)
    assert metric.sigma == 0.5


def test_the_deviation_of_the_values_is_the_one_that_was_learnt(tmp_path: Path) -> None:
    agent = acktr.ACKTR("CartPole-v1", seed=0, value_sigma=0, **SMALL)
    agent.save(tmp_path / "fresh")
    assert value_sigma(tmp_path / "fresh", agent.settings) == 1
    agent.learn(200)
    agent.save(tmp_path / "trained")
    found = value_sigma(tmp_path / "trained", agent.settings)
    assert found != 1
    assert found == pytest.approx(float(agent._trainer.updater._scale.sigma))  # type: ignore[attr-defined]
    state = checkpoint.load(tmp_path / "trained").state
    del state["training"]
    checkpoint.save(tmp_path / "exported", state, kind="policy")
    assert value_sigma(tmp_path / "exported", agent.settings) == 1
    assert value_sigma(tmp_path / "exported", Settings(env="CartPole-v1", value_sigma=0.25)) == 0.25


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small policy that shares a trunk with its value."""
    file = tmp_path_factory.mktemp("policy") / "small.safetensors"
    acktr.ACKTR("CartPole-v1", seed=0, shared_trunk=True, **SMALL).save(file)
    return file


@pytest.fixture(autouse=True)
def short_games(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature_states, "SPREAD", 50)


def run(file: Path, *, drawn: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    """A small report, with those pictures alone that are named: they take most of the time."""
    settings: dict[str, Any] = {"out": None, "damping": None, "deterministic": None, "seed": 1}
    settings.update({"states": 16, "units": 3, **changes})
    with pytest.MonkeyPatch.context() as patched:
        for name in {"fisher_picture", "inverse_picture", "errors_picture", "autocorrelation_picture"} - {*drawn}:
            patched.setattr(curvature_report, name, lambda *_: None)
        return curvature_file(file, **settings)


def refuse_constants(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def colours(picture: Path) -> int:
    pixels = imageio.imread(picture)[..., :3].reshape(-1, 3)
    return len(np.unique(pixels, axis=0))


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("acktr: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_json_is_one_object_and_the_files_are_there(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert main(["curvature", str(saved), "--out", str(out), "--states", "20", "--units", "4", "--json"]) == 0
    result = json.loads(capfd.readouterr().out, parse_constant=refuse_constants)
    assert result == json.loads((out / "report.json").read_text(), parse_constant=refuse_constants)
    assert (result["env"], result["states"], result["fisher"]) == ("CartPole-v1", 20, "exact")
    assert result["policy"] == "deterministic"
    (network,) = result["networks"]
    assert network["matrices"]["parameters"] == {
        "torso.1": 20,
        "torso.3": 20,
        "policy_head.logits": 10,
        "value_head": 5,
    }
    names = {path.name for path in out.iterdir()}
    pictures = {"fisher.png", "inverse.png", "errors.png"}
    assert names == {*pictures, "errors.csv", "assumptions.csv", "report.json"}
    assert {Path(file).name for file in result["files"]} == names
    assert all(colours(out / name) > 100 for name in pictures)
    rows = list(csv.DictReader((out / "errors.csv").open()))
    assert len(rows) == 4 * len(APPROXIMATIONS)
    first = result["networks"][0]["layers"][0]["errors"][0]
    assert float(rows[0]["relative"]) == pytest.approx(first["relative"], rel=1e-5)
    assert (rows[0]["layer"], rows[0]["curvature"]) == ("torso.1", "kfac")


def test_equal_seeds_give_equal_figures_and_a_run_folder_keeps_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    agent = acktr.ACKTR("CartPole-v1", seed=0, total_timesteps=40, num_steps=10, run_dir=folder, **SMALL)
    agent.learn(40)
    results = [run(folder), run(folder), run(folder, seed=2)]
    assert results[0] == results[1]
    assert results[0]["networks"] != results[2]["networks"]
    files = [Path(file) for file in results[0]["files"]]
    assert {file.parent for file in files} == {folder / "curvature"}
    assert {file.name for file in files} >= {"fisher-policy.png", "fisher-critic.png", "inverse-critic.png"}
    assert run(folder, damping=3.0)["networks"][0]["damping"] == 3
    assert json.loads((folder / "curvature" / "report.json").read_text())["networks"][0]["damping"] == 3
    text = report(results[0], 80)
    assert "policy: |F\u0302 - F| / |F| by layer" in text
    assert "errors are from the exact Fisher" in " ".join(text.split())
    assert "\nIAD: " in text
    assert "SUD" not in text, "no layer has positions"
    assert "K-FAC  EKFAC  K-FOC  EKFOC  diagonal" in text
    assert f"written to {folder / 'curvature'}" in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines())
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--episodes", "1"]) == 0, "the run is as it was"


def test_percentages_are_of_the_matrices_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are scaled before they are drawn, and are then no longer as far apart as before."""
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(curvature_pictures.Figure, "savefig", lambda self, path, **_: drawn.update({path.stem: self}))
    agent = acktr.ACKTR("CartPole-v1", seed=0, shared_trunk=True, damping=0.05, value_sigma=0.1, **SMALL)
    agent.save(tmp_path / "policy")
    looked: list[Any] = []
    monkeypatch.setattr(curvature_report, "dense_fisher", lambda *args: looked.append(dense_fisher(*args)) or looked[0])
    pictures = ["fisher_picture", "inverse_picture"]
    found = run(tmp_path / "policy", units=4, drawn=pictures)["networks"][0]["matrices"]
    (dense,) = looked
    inverted = inverses(dense, 0.05, [["torso.1"], ["torso.3"], ["policy_head.logits", "value_head"]])

    def drawing(matrix: Tensor, reference: Tensor) -> Tensor:
        means = [part.mean().expand(len(part)) for part in reference.diagonal().split(dense.sizes)]
        roots = torch.cat(means).sqrt()
        return matrix / torch.outer(roots, roots)

    def apart(one: Tensor, other: Tensor) -> float:
        return float((one - other).norm() / other.norm())

    def check(axis: Any, expected: Tensor, title: str) -> None:
        image = torch.from_numpy(np.asarray(axis.images[0].get_array()))
        torch.testing.assert_close(image, expected.abs().clamp(min=float(axis.images[0].norm.vmin)))
        assert title in axis.get_title()

    exact, factored = drawing(dense.exact, dense.exact), drawing(dense.factored(), dense.exact)
    share = apart(factored, exact)
    assert abs(share - apart(dense.factored(), dense.exact)) > 0.002, "the scaling matters here"
    assert found["error_of_factored"] == pytest.approx(share)
    panels = (exact, "exact Fisher F"), (factored, "F\u0303"), (factored - exact, f"difference, {share:.1%} of F")
    for axis, (matrix, title) in zip(drawn["fisher"].axes, panels, strict=False):
        check(axis, matrix, title)
    shown = {name: drawing(matrix, inverted["factored"]) for name, matrix in inverted.items()}
    for axis, (name, matrix) in zip(drawn["inverse"].axes, shown.items(), strict=False):
        share = apart(matrix, shown["factored"])
        check(axis, matrix, "inverse of F\u0303" if name == "factored" else f"{share:.1%} from that of F\u0303")
        distances = found["inverses"][name]
        assert distances["from_inverse_of_factored"] == pytest.approx(share)
        assert distances["from_inverse_of_exact"] == pytest.approx(apart(matrix, shown["exact"]))


def test_pictures_say_which_fisher_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: dict[str, str] = {}
    monkeypatch.setattr(
        curvature_pictures.Figure,
        "savefig",
        lambda self, path, **_: titles.update({path.stem: self.get_suptitle()}),
    )
    sizes = {"conv_channels": (2, 3, 2), "conv_features": 5, "num_envs": 1, "num_threads": 1}
    acktr.ACKTR("PongNoFrameskip-v4", seed=0, **sizes).save(tmp_path / "pong")
    acktr.ACKTR("CartPole-v1", seed=0, shared_trunk=True, **SMALL).save(tmp_path / "cartpole")
    every = ["errors_picture", "fisher_picture", "inverse_picture", "autocorrelation_picture"]
    run(tmp_path / "pong", states=1, units=2, drawn=every)
    assert "from the blocks of the Fisher of one drawn outcome for each state" in titles["errors"]
    assert all("exact over outcomes" in titles[name] for name in ("fisher", "autocorrelation"))
    assert "PongNoFrameskip-v4, 1 state\n" in titles["fisher"]
    run(tmp_path / "cartpole", units=2, damping=0.25, drawn=every)
    assert "from the blocks of the exact Fisher\n" in titles["errors"]
    assert "damping 0.25, added to F as it is" in titles["inverse"]


def test_beside_a_file_there_is_a_folder_of_its_name(saved: Path) -> None:
    result = run(saved, states=4, units=2)
    assert Path(result["files"][0]).parent == saved.parent / "small-curvature"


def test_frames_are_compared_under_draws_and_autocorrelated(tmp_path: Path) -> None:
    sizes = {"conv_channels": (2, 3, 2), "conv_features": 5, "num_envs": 1, "num_threads": 1}
    acktr.ACKTR("PongNoFrameskip-v4", seed=0, **sizes).save(tmp_path / "pong.safetensors")
    result = run(tmp_path / "pong.safetensors", states=6, units=4, drawn=["autocorrelation_picture"])
    assert (result["fisher"], result["policy"]) == ("sampled", "stochastic")
    (network,) = result["networks"]
    assert network["name"] == "joint"
    kinds = {layer["layer"]: {error["conv_factors"] for error in layer["errors"]} for layer in network["layers"]}
    assert kinds["torso.0"] == {"expand", "reduce"}
    assert kinds["torso.7"] == {"expand"}
    rows = list(csv.DictReader((tmp_path / "pong-curvature" / "errors.csv").open()))
    first = [(row["curvature"], row["conv_factors"]) for row in rows if row["layer"] == "torso.0"]
    assert len(first) == len(set(first)) == 2 * len(APPROXIMATIONS) - 1
    assert ("diagonal", "reduce") not in first, "it is that under expand"
    folder = tmp_path / "pong-curvature"
    names = {Path(file).name for file in result["files"]}
    assert names >= {"fisher.png", "inverse.png", "autocorrelation.png", "autocorrelation.csv"}
    assert colours(folder / "autocorrelation.png") > 50
    rows = list(csv.DictReader((folder / "autocorrelation.csv").open()))
    middles = [row for row in rows if (row["down"], row["across"]) == ("0", "0")]
    assert len(middles) >= 4
    assert {float(row["mean"]) for row in middles} == {1.0}
    text = report(result, 100)
    (line,) = [line.split() for line in text.splitlines() if line.startswith("torso.0, reduce")]
    assert (len(line), line[-1]) == (2 + len(APPROXIMATIONS), "-")
    assert "errors are from the Fisher of one drawn outcome for each state" in " ".join(text.split())
    assert all(f"\n{name}: " in text for name in ("IAD", "SH a", "SH g", "SUD"))


def test_units_that_would_make_too_large_a_matrix_are_refused_before_play(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    acktr.ACKTR("CartPole-v1", seed=0, num_envs=1).save(tmp_path / "policy")
    assert main(["curvature", str(tmp_path / "policy"), "--units", "64"]) == 2
    line = error_line(capsys)
    assert "--units 64 would make matrices of 4,610 parameters, above the 3,000" in line
    most = line.rstrip().rpartition(" ")[2]
    assert main(["curvature", str(tmp_path / "policy"), "--units", str(int(most) + 1)]) == 2
    assert not (tmp_path / "policy-curvature").exists()


def test_a_layer_too_wide_to_factor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ActorCritic(Box(-1, 1, (7,)), Discrete(2), SETTINGS)
    monkeypatch.setattr(curvature_report, "LARGEST_FACTOR", 7)
    with pytest.raises(UserError, match=r"file: layer torso.1 has a curvature factor of 8 x 8, above the 7 x 7"):
        check_size(policy, Path("file"), None)
    monkeypatch.setattr(curvature_report, "LARGEST_FACTOR", 8)
    check_size(policy, Path("file"), None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--states", "0"], "--states takes a whole number of at least 1, got 0"),
        (["--units", "0"], "--units takes a whole number of at least 1, got 0"),
        (["--seed", "-1"], "--seed takes a whole number of at least 0, got -1"),
        (["--damping", "0"], "--damping takes a number above 0, got 0.0"),
        (["--damping", "nan"], "--damping takes a number above 0, got nan"),
        (["--deterministic", "--no-deterministic"], "exclude each other"),
        (["--state", "3"], "nearest: --states"),
    ],
)
def test_bad_flags_are_one_line(args: list[str], message: str, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curvature", str(saved), *args]) == 2
    assert message in error_line(capsys)


def test_bad_files_are_one_line(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curvature", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such file" in error_line(capsys)
    assert main(["curvature", str(tmp_path)]) == 2
    assert "not a run folder" in error_line(capsys)
    (tmp_path / "foreign").write_text("something else")
    assert main(["curvature", str(tmp_path / "foreign")]) == 2
    assert "foreign" in error_line(capsys)
    state = checkpoint.load(saved).state
    checkpoint.save(tmp_path / "own", {**state, "protocol": {**state["protocol"], "own": True}}, kind="policy")
    assert main(["curvature", str(tmp_path / "own")]) == 2
    assert "environment of one's own" in error_line(capsys)


def test_a_folder_that_cannot_be_written_asks_for_another(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["curvature", str(saved), "--out", str(tmp_path / "taken")]) == 2
    assert "taken cannot be written: File exists; name another folder with --out" in error_line(capsys)
    monkeypatch.setattr("os.access", lambda *_: False)  # as on a read-only file system, for any user
    assert main(["curvature", str(saved), "--out", str(tmp_path / "read-only")]) == 2
    assert "read-only cannot be written: no permission; name another folder with --out" in error_line(capsys)


def test_the_verb_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["curvature", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: acktr curvature" in text
    for flag in ("--out", "--states", "--units", "--damping", "--seed", "--json"):
        assert flag in text
    assert "without damping_control" in " ".join(text.replace("\u2502", " ").split())
    assert main(["--help"]) == 0
    assert "curvature compare K-FAC" in capsys.readouterr().out


# --- the guide -------------------------------------------------------------------------------------------------------


def test_the_guide_s_examples_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = (Path(__file__).parent.parent / "docs" / "curvature.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 6
    names: dict[str, Any] = {"__name__": "guide"}
    for number, code in enumerate(examples):
        exec(compile(code, f"curvature.md, example {number + 1}", "exec"), names)
        if number == 2:
            assert names["optimizer"].steps == 20, "the state that was saved is that which was loaded"
        if number == 4:
            steps, last = names["steps"], names["report"]
            assert (steps.steps, steps.optimizer.steps) == (20, 20)
            assert (steps.damping, steps.factor_damping) == (last.damping, last.factor_damping)
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(APPROXIMATIONS)
    assert names["probabilities"].sum(-1) == pytest.approx(np.ones(64))
    assert names["bound"] < 0
