"""Torsos at their start."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from acktr.agents.networks import Encoder, build_torso, nature_torso, small_conv_torso, without_sums
from acktr.agents.settings import Settings
from acktr.errors import UserError


@pytest.mark.usefixtures("float64")
def test_a_uniform_background_leaves_the_features_of_the_first_torso_as_they_are() -> None:
    torso = nature_torso((4, 84, 84), channels=(32, 64, 32), features=64)
    frames = torch.rand(3, 4, 84, 84)
    torch.testing.assert_close(torso(frames + 0.34), torso(frames), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_hardly_any_unit_is_dead_at_the_start_on_a_grey_background() -> None:
    torso = nature_torso((1, 84, 84), channels=(32, 64, 32), features=512)
    frames = torch.full((64, 1, 84, 84), 0.34)
    for frame in frames:  # a ball and two paddles somewhere
        for height, width in ((4, 2), (16, 4), (16, 4)):
            row, column = (int(torch.randint(0, 84 - size, ())) for size in (height, width))
            frame[0, row : row + height, column : column + width] = 0.9
    maps = frames
    for layer in torso:
        maps = layer(maps)
        if isinstance(layer, nn.ReLU):
            fires = (maps > 0).flatten(2).any(2) if maps.dim() == 4 else maps > 0
            assert fires.any(0).double().mean() > 0.95
    assert fires.all(0).double().mean() < 0.1  # of the features: one that always fires tells little


@pytest.mark.usefixtures("float64")
def test_filters_without_sums_keep_their_norms() -> None:
    layer = nn.Conv2d(4, 8, 8, 4)
    norms, bias = layer.weight.detach().flatten(1).norm(dim=1), layer.bias.detach().clone()  # type: ignore[union-attr]
    without_sums(layer)
    torch.testing.assert_close(layer.weight.detach().flatten(1).norm(dim=1), norms, rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.weight.detach().sum((1, 2, 3)), torch.zeros(8), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.bias, nn.Parameter(bias), rtol=0, atol=0)


def test_filters_of_equal_weights_stay_as_they_are() -> None:
    """They have nothing but their sum; divided by the norm of what is left they would be no numbers."""
    layer = nn.Conv2d(1, 3, 1)
    weights = layer.weight.detach().clone()
    without_sums(layer)
    assert torch.equal(layer.weight, weights)
    nn.init.zeros_(layer.weight)
    without_sums(layer)
    assert torch.equal(layer.weight, torch.zeros(3, 1, 1, 1))


@pytest.mark.parametrize("channels", [(32, 32), (4, 4, 4, 4), (2,) * 7])
def test_small_convolutions_halve_any_picture_and_give_features(channels: tuple[int, ...]) -> None:
    torso = small_conv_torso((6, 42, 41), channels=channels, features=16)
    assert torso(torch.rand(2, 6, 42, 41)).shape == (2, 16)
    maps = torso[: 2 * len(channels)](torch.rand(2, 6, 42, 41))
    step = 2 ** len(channels)
    assert maps.shape == (2, channels[-1], -(-42 // step), -(-41 // step))


def test_small_convolutions_take_any_number_of_channels_and_frames_alone() -> None:
    settings = Settings(env="Hopper-v5", network="small-conv", conv_channels=(8, 8), conv_features=16)
    frames = Encoder(spaces.Box(0, 255, (6, 42, 42), np.uint8))
    assert sum(isinstance(layer, nn.Conv2d) for layer in build_torso(frames, settings)) == 2
    with pytest.raises(UserError, match="'small-conv' takes frames"):
        build_torso(Encoder(spaces.Box(-1, 1, (3,), np.float32)), settings)
    with pytest.raises(UserError, match=r"takes three whole numbers, got .*small-conv any number"):
        Settings(env="Hopper-v5", conv_channels=(8, 8))
