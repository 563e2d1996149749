"""The typed settings of a run: every name that a preset file, a flag or a keyword argument may set.

This module imports no torch, so that `acktr --help` and `acktr presets` answer at once.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal

from acktr.agents.setting_fields import check, converted_value, setting, values_taken
from acktr.errors import UserError

Schedule = Literal["linear", "late", "constant"]

EVALUATION_SEED = 1_000_000
"""Default seed of evaluations and videos, away from the small seeds that people train with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides what a run computes. Frozen; `dataclasses.replace` makes a changed copy.

    Raises:
        UserError: a value of the wrong type or out of its range, naming the setting and what it takes.
    """

    # --- the run -----------------------------------------------------------------------------------------------
    env: str = setting(
        "", "Environment id, as gymnasium spells it.", typical="BreakoutNoFrameskip-v4, CartPole-v1", origin="none"
    )
    algorithm: Literal["acktr", "a2c"] = setting(
        "acktr", "acktr: natural gradient; a2c: the first-order baseline.", typical="acktr", origin="this project"
    )
    total_timesteps: int = setting(
        1_000_000,
        "Agent decisions in real transitions; schedules end here.",
        typical="1e5 to 1e7",
        origin="this project",
        low=1,
    )
    seed: int = setting(0, "Seed of every random stream.", typical="0, 1, 2, ...", origin="this project", low=0)
    device: str = setting(
        "auto",
        "auto, cpu, cuda or cuda:N. auto: CUDA for convolutional policies when present, else the CPU.",
        typical="auto",
        origin="this project",
    )
    num_threads: int = setting(
        0,
        "CPU threads for torch and the emulator; 0 takes what the process may use.",
        typical="0",
        origin="this project",
        low=0,
    )
    # --- environments ------------------------------------------------------------------------------------------
    num_envs: int = setting(16, "Environments stepped together.", typical="8 to 128", origin="A3C/A2C, 16", low=1)
    num_steps: int = setting(
        20, "Steps per environment between updates.", typical="5 to 128", origin="ACKTR code, 20", low=1
    )
    reward_clip: Literal["sign", "none"] = setting(
        "none",
        "sign: learn from the sign of the reward (scores stay raw).",
        typical="sign on Atari",
        origin="Mnih et al. 2015",
    )
    scale_rewards: bool = setting(
        False,
        "Divide rewards by the running deviation of the discounted returns, for learning only.",
        typical="true for continuous rewards",
        origin="Wu et al. 2017, their code for vectors",
    )
    normalize_observations: bool = setting(
        False,
        "Shift and scale vector observations by their running mean and deviation, which the policy keeps.",
        typical="true on MuJoCo",
        origin="Wu et al. 2017, their code for vectors",
    )
    terminal_on_life_loss: bool = setting(
        False,
        "Atari: a lost life ends the episode for learning; scores count full games.",
        typical="true on *NoFrameskip-v4",
        origin="Mnih et al. 2015",
    )
    fire_after_life_loss: bool = setting(
        False,
        "Atari: press FIRE after a lost life where the game has FIRE; that transition is not learnt from.",
        typical="true on *NoFrameskip-v4",
        origin="Baselines' FireReset",
    )
    noop_max: int = setting(
        30, "Atari: up to this many no-ops at a reset.", typical="30", origin="Mnih et al. 2015", low=0
    )
    # --- network -----------------------------------------------------------------------------------------------
    network: Literal["auto", "nature", "mlp"] = setting(
        "auto",
        "nature: convolutions for images; mlp: for vectors; auto: by the observation space.",
        typical="auto",
        origin="this project",
    )
    conv_channels: tuple[int, ...] = setting(
        (32, 64, 32),
        "Channels of the three convolutions (8x8 stride 4, 4x4 stride 2, 3x3 stride 1).",
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
    # --- objective ---------------------------------------------------------------------------------------------
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
    # --- optimizer ---------------------------------------------------------------------------------------------
    lr: float = setting(
        0.25,
        "Largest step size (eta_max); the trust region shortens it.",
        typical="0.03 to 1 (ACKTR), 7e-4 (A2C)",
        origin="Wu et al. 2017",
        low=0,
        low_open=True,
    )
    lr_schedule: Literal["linear", "late", "constant"] = setting(
        "linear",
        "How lr moves over the run; linear: falls to 0; late: falls to 0 over the second half.",
        typical="linear",
        origin="Wu et al. 2017",
    )
    kl_schedule: Literal["linear", "late", "constant"] = setting(
        "constant",
        "How the trust regions move over the run; as lr_schedule.",
        typical="constant",
        origin="this project",
    )
    momentum: float = setting(
        0.9, "Decay of the averaged natural gradient.", typical="0 to 0.95", origin="Wu et al. 2017", low=0, high=0.9999
    )
    max_kl: float = setting(
        1e-3,
        "Trust region delta on the KL that the curvature predicts, in nats per update; 0 sets none.",
        typical="0, or 1e-4 to 1e-2",
        origin="Wu et al. 2017",
        low=0,
    )
    desired_kl: float = setting(
        0.0,
        "Measured KL of the policy that lr is adapted to, in nats per update, from lr/1000 to 8 lr; 0 leaves lr alone.",
        typical="0, or 1e-4 to 2e-3",
        origin="Wu et al. 2017, their code for MuJoCo: 0.002",
        low=0,
    )
    max_measured_kl: float = setting(
        0.0,
        "Trust region on the policy's measured KL: a longer step is shortened to it; 0 sets none.",
        typical="0.003 to 0.03",
        origin="this project",
        low=0,
    )
    max_measured_value_kl: float = setting(
        0.0,
        "Likewise for the values, in nats of their Gaussian: mean (dV)^2 / (2 sigma^2); 0 sets none.",
        typical="0.01 to 1",
        origin="this project",
        low=0,
    )
    damping: float = setting(
        0.01,
        "lambda added to the Fisher block.",
        typical="1e-3 to 0.1",
        origin="Wu et al. 2017",
        low=0,
    )
    damping_mode: Literal["factored", "exact"] = setting(
        "factored",
        "factored: each factor damped with the trace-norm pi (Cholesky); exact: in the eigenbasis.",
        typical="factored",
        origin="Martens & Grosse 2015, section 6.3",
    )
    stat_decay: float = setting(
        0.99,
        "Decay of the running factors, debiased.",
        typical="0.95 to 0.99",
        origin="Baselines",
        low=0,
        high=0.99999,
    )
    stat_window: float = setting(
        1.0,
        "How far back young factors reach, as a share of the updates so far; stat_decay bounds it later.",
        typical="0.1 to 1",
        origin="Martens & Grosse 2015, section 5 (1)",
        low=0.01,
        high=1,
    )
    stat_interval: int = setting(
        1, "Updates between updates of the factors.", typical="1 to 5", origin="Baselines", low=1
    )
    inverse_interval: int = setting(
        10, "Updates between refreshes of a layer's inverse.", typical="1 to 20", origin="Kostrikov's code", low=1
    )
    stat_fraction: float = setting(
        1.0,
        "Share of the batch that the factors are taken from, rotating.",
        typical="0.125 to 1",
        origin="Martens & Grosse 2015, section 8 (1/8)",
        low=0,
        low_open=True,
        high=1,
    )
    position_stride: int = setting(
        1,
        "Convolutions: inputs are taken at every so many rows and columns of the output, on a shifting grid.",
        typical="1 to 3",
        origin="TF-kfac caps patches likewise",
        low=1,
    )
    fisher: Literal["sampled", "exact", "empirical"] = setting(
        "sampled",
        "Which Fisher the policy's factors estimate.",
        typical="sampled",
        origin="Martens & Grosse 2015, section 5",
    )
    value_sigma: float = setting(
        1.0,
        "Standard deviation of the value's Gaussian (Gauss-Newton factor 1/sigma^2); 0: running rms of R - V.",
        typical="0, or 0.5 to 1",
        origin="Wu et al. 2017",
        low=0,
    )
    critic_lr: float = setting(
        0.25,
        "Largest step size of a critic with a torso of its own.",
        typical="0.1 to 1",
        origin="this project",
        low=0,
        low_open=True,
    )
    critic_max_kl: float = setting(
        0.01,
        "Trust region of a critic with a torso of its own: mean (dV)^2 / (2 sigma^2).",
        typical="1e-3 to 0.1",
        origin="this project",
        low=0,
        low_open=True,
    )
    bias: Literal["joint", "separate"] = setting(
        "joint", "Bias as a homogeneous coordinate or as a block of its own.", typical="joint", origin="Martens 2015"
    )
    conv_factors: Literal["expand", "reduce"] = setting(
        "expand",
        "expand: KFC; reduce: averaged patches, summed gradients.",
        typical="expand",
        origin="Grosse & Martens 2016",
    )
    compat: Literal["none", "baselines"] = setting(
        "none",
        "baselines: rescaling, momentum and Fisher as in the published code, so that its settings carry over.",
        typical="none",
        origin="openai/baselines acktr",
    )
    # --- a2c ---------------------------------------------------------------------------------------------------
    a2c_optimizer: Literal["rmsprop", "adam"] = setting(
        "rmsprop", "A2C only: first-order optimizer.", typical="rmsprop", origin="Mnih et al. 2016"
    )
    rms_alpha: float = setting(
        0.99, "A2C only: RMSprop's decay.", typical="0.99", origin="Baselines", low=0, high=0.99999
    )
    rms_eps: float = setting(
        1e-5, "A2C only: epsilon of RMSprop or Adam.", typical="1e-8 to 1e-3", origin="Baselines", low=0, low_open=True
    )
    max_grad_norm: float = setting(
        0.5, "A2C only: global norm of the clipped gradient.", typical="0.5", origin="Baselines", low=0, low_open=True
    )
    # --- records -----------------------------------------------------------------------------------------------
    log_interval: int = setting(10, "Updates per row of metrics.csv.", typical="10", origin="this project", low=1)
    kl_interval: int = setting(
        10, "Updates between measurements of the KL.", typical="1 to 50", origin="this project", low=1
    )
    checkpoint_interval: int = setting(
        100_000, "Timesteps between checkpoints.", typical="1e4 to 1e6", origin="this project", low=1
    )
    exact_resume: bool = setting(
        False,
        "Restart all environments at every checkpoint, so that a resumed run equals an uninterrupted one to the byte.",
        typical="false",
        origin="this project",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check(field, getattr(self, field.name))
        if self.env == "":
            raise UserError("setting 'env' is empty: name an environment, for example --env CartPole-v1")
        if len(self.conv_channels) != 3:
            raise UserError(f"setting 'conv_channels' takes three whole numbers, got {self.conv_channels}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values (tuples as lists), ready for YAML or JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "settings") -> "Settings":
        """Build settings from plain values, converting each by the declared type of its field.

        Args:
            values: names and values, as YAML or JSON gives them (`1e-3` may be a string, tuples are lists).
            source: what to call the origin in an error message, e.g. the file's name.

        Raises:
            UserError: an unknown name (with the nearest ones), a wrong type or a value out of range.
        """
        return cls(**convert(values, source=source))


FIELDS: dict[str, "dataclasses.Field[Any]"] = {field.name: field for field in dataclasses.fields(Settings)}


def convert(values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Convert plain values to the declared types of the settings of the same names.

    Args:
        values: a part of the settings, or all of them.
        source: what to call the origin in an error message.

    Raises:
        UserError: an unknown name (with the nearest ones) or a value that does not convert.
    """
    converted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name), FIELDS, n=3, cutoff=0.5)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise UserError(f"{source}: no setting is called '{name}'{hint}")
        try:
            converted[name] = converted_value(FIELDS[name].type, value)
        except (TypeError, ValueError):
            raise UserError(f"{source}: setting '{name}' takes {takes(name)}, got {value!r}") from None
    return converted


def takes(name: str) -> str:
    """Say in words which values the setting `name` takes, for help texts and error messages."""
    return values_taken(FIELDS[name])
