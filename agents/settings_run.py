"""Settings of the run itself: what is trained on, for how long, and what is kept."""

import dataclasses
from typing import Literal

from acktr.agents.setting_fields import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Environment, length, seed and machine."""

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
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Of the torso's forward and backward passes; parameters and curvature stay float32. auto: bfloat16 for "
        "convolutions on CPUs that multiply it natively, else float32.",
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
    rank_timeout: float = setting(
        300.0,
        "Under torchrun: seconds after which a process that does not answer counts as lost, which ends the job.",
        typical="60 to 600",
        origin="this project; torch waits 600 on GPUs, 1800 on CPUs",
        low=1.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentSettings:
    """How many environments, and how they and their rewards are treated."""

    num_envs: int = setting(
        16, "Environments stepped together, by all processes.", typical="8 to 128", origin="A3C/A2C, 16", low=1
    )
    num_steps: int = setting(
        20, "Steps per environment between updates.", typical="5 to 256", origin="ACKTR code, 20", low=1
    )
    vectorization: Literal["auto", "sync", "async"] = setting(
        "auto",
        "Step environments in this process (sync) or in a worker process per core (async); auto measures both at the "
        "start. Atari has threads of its own.",
        typical="auto",
        origin="this project",
    )
    overlap: bool = setting(
        False,
        "Collect the next batch, on a thread of its own, while the last one is learnt from: each is made by the "
        "parameters of one update before. For machines with cores or a GPU to spare.",
        typical="false; true for the last tenth of a GPU's speed",
        origin="this project; asynchronous trainers such as Petrenko et al. 2020 lag by more",
    )
    pixels: bool = setting(
        False,
        "MuJoCo: observe pictures, drawn off-screen, instead of state vectors.",
        typical="false",
        origin="Wu et al. 2017, section 5.2",
    )
    pixel_size: int = setting(
        42, "Pixels: height and width of a picture.", typical="42 to 84", origin="Wu et al. 2017, their code", low=8
    )
    frame_stack: int = setting(
        2,
        "Pixels: RGB pictures of successive steps in one observation.",
        typical="2 to 4",
        origin="Wu et al. 2017, their code",
        low=1,
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
        30,
        "Atari: fewer than this many no-ops at a reset, drawn anew each time.",
        typical="30",
        origin="Mnih et al. 2015",
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """What is written, and how often."""

    log_interval: int = setting(10, "Updates per row of metrics.csv.", typical="10", origin="this project", low=1)
    kl_interval: int = setting(
        10, "Updates between measurements of the KL.", typical="1 to 50", origin="this project", low=1
    )
    checkpoint_interval: int = setting(
        100_000, "Timesteps between checkpoints.", typical="1e4 to 1e6", origin="this project", low=1
    )
    exact_resume: bool = setting(
        False,
        "Restart all environments at every checkpoint, so that a resumed run equals an uninterrupted one to the byte. "
        "Games cut off there are not in return_mean: an interval of a few games per environment favours short ones.",
        typical="false",
        origin="this project",
    )
