"""Settings of what is learnt: the network and the objective."""

import dataclasses
from typing import Literal

from acktr.agents.setting_fields import setting

Schedule = Literal["linear", "late", "constant"]
"""linear: falls to 0 over the run; late: over its second half; constant: stays."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Torsos and heads."""

    network: Literal["auto", "nature", "small-conv", "mlp"] = setting(
        "auto",
        "nature: three convolutions, for images; small-conv: 3x3 ones, for small images; mlp: for vectors; auto: "
        "nature or mlp, by the observation space.",
        typical="auto",
        origin="this project",
    )
    conv_channels: tuple[int, ...] = setting(
        (32, 64, 32),
        "Channels of the convolutions: three for nature (8x8 stride 4, 4x4 stride 2, 3x3 stride 1), any number for "
        "small-conv (3x3 stride 2).",
        typical="32 64 32 (ACKTR) or 32 64 64 (DQN)",
        origin="Wu et al. 2017",
        low=1,
    )
    conv_features: int = setting(
        512, "Width of the linear layer after the convolutions.", typical="256 to 512", origin="Wu et al. 2017", low=1
    )
    zero_sum_filters: bool = setting(
        True,
        "Each filter of the first convolution sums to 0 at the start, so that a uniform background gives no answer.",
        typical="true",
        origin="this project: on Pong's grey a third of all units never fire otherwise",
    )
    hidden_sizes: tuple[int, ...] = setting(
        (64, 64), "Widths of the hidden layers of the MLP.", typical="64 64", origin="Schulman et al. 2015", low=1
    )
    activation: Literal["tanh", "relu", "elu"] = setting(
        "tanh", "Activation of the MLP.", typical="tanh", origin="Schulman et al. 2015"
    )
    shared_trunk: bool = setting(
        False,
        "Policy and value share their torso.",
        typical="true on frames",
        origin="Wu et al. 2017",
    )
    policy_gain: float = setting(
        0.01,
        "Gain of the orthogonal initialisation of the policy head.",
        typical="0.01 to 1",
        origin="Baselines",
        low=0,
        low_open=True,
    )
    log_std_init: float = setting(
        0.0,
        "Logarithm of the deviation that Box actions start with; the bounds are at -1 and 1.",
        typical="-1 to 0",
        origin="Schulman et al. 2015",
        low=-10,
        high=5,
    )
    state_dependent_std: bool = setting(
        False,
        "The deviation of Box actions is a function of the observation.",
        typical="false",
        origin="Mnih et al. 2016; Wu et al. 2017 and Baselines learn one number for each dimension",
    )
    squash_actions: bool = setting(
        False,
        "Box actions pass through tanh to their bounds, in place of being clipped there.",
        typical="false",
        origin="Haarnoja et al. 2018",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Returns, advantages and the loss."""

    gamma: float = setting(0.99, "Discount.", typical="0.98 to 0.999", origin="Wu et al. 2017", low=0, high=1)
    gae_lambda: float = setting(
        1.0,
        "GAE's lambda; 1 gives n-step returns.",
        typical="0.9 to 1",
        origin="Schulman et al. 2016",
        low=0,
        high=1,
    )
    entropy_coef: float = setting(
        0.01, "Weight of the entropy bonus.", typical="0 to 0.02", origin="Wu et al. 2017", low=0
    )
    entropy_schedule: Literal["linear", "late", "constant"] = setting(
        "constant",
        "How entropy_coef moves over the run; as lr_schedule.",
        typical="late on frames",
        origin="this project",
    )
    value_coef: float = setting(
        0.5, "Weight of 1/2 (v - R)^2.", typical="0.25 to 1", origin="Baselines: 0.25 (v - R)^2", low=0
    )
    center_values: bool = setting(
        False,
        "ACKTR: let the value head alone learn the batch's mean value error, not the layers below it.",
        typical="true on frames",
        origin="this project",
    )
    normalize_advantages: bool = setting(
        False, "Give advantages mean 0 and deviation 1 in each batch.", typical="true on MuJoCo", origin="this project"
    )
