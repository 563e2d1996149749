"""Settings of how it is learnt: the natural gradient, its trust region, and the first-order baseline."""

import dataclasses
from typing import Literal

from acktr.agents.setting_fields import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The natural gradient and its trust region; A2C takes lr and lr_schedule of them."""

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
        typical="linear; constant where desired_kl steers",
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
        typical="0, or 1e-4 to 2e-2",
        origin="Wu et al. 2017, their code for MuJoCo: 0.002",
        low=0,
    )
    max_measured_kl: float = setting(
        0.0,
        "Trust region on the policy's measured KL: a longer step is shortened to it, to second order; 0 sets none.",
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
    kl_fraction: float = setting(
        1.0,
        "Share of the batch that KLs are measured on, at most that of stat_fraction; line_search measures all of it.",
        typical="0.1 to 1",
        origin="this project",
        low=0,
        low_open=True,
        high=1,
    )
    line_search: int = setting(
        0,
        "Backtracks at most, until a step keeps max_measured_kl, else max_kl, as measured, and does not make the "
        "surrogate objective worse; 0: no search.",
        typical="0 or 10",
        origin="Schulman et al. 2015: 10",
        low=0,
        high=50,
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
    damping_control: Literal["none", "kl-ratio"] = setting(
        "none",
        "kl-ratio: lambda rises while steps are measured to go more than twice as far as the curvature predicts, and "
        "falls while less than half, within a factor of 100.",
        typical="none",
        origin="this project, after Levenberg and Marquardt",
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
        origin="this project; 1 leaves stat_decay alone, debiased",
        low=0.01,
        high=1,
    )
    stat_interval: int = setting(
        1, "Updates between updates of the factors.", typical="1 to 5", origin="Baselines", low=1
    )
    inverse_interval: int = setting(
        10, "Updates between refreshes of a layer's inverse.", typical="1 to 20", origin="Kostrikov's code", low=1
    )
    stagger_inverses: bool = setting(
        True,
        "Layers take turns with their inverses; without, all are due at once, which processes can share out.",
        typical="true; false under torchrun with many wide layers",
        origin="this project",
    )
    inverse_placement: Literal["broadcast", "owner"] = setting(
        "broadcast",
        "Under torchrun: each process makes a share of the inverses and gives them to all, or keeps them and gives the "
        "preconditioned gradients.",
        typical="broadcast; owner where memory is short, or inverse_interval 1",
        origin="Pauloski et al. 2021",
    )
    curvature_ranks: int = setting(
        0,
        "Under torchrun: so many of the processes have no environments and only make inverses, which are used half an "
        "inverse_interval later.",
        typical="0; 1 where refreshes hold up the others",
        origin="Ba, Grosse & Martens 2017",
        low=0,
    )
    reuse_forward: bool = setting(
        True,
        "Convolutional networks: learn on what the layers gave while acting, in place of a second forward pass.",
        typical="true",
        origin="this project",
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
        "Which Fisher the factors estimate: the policy's, and likewise the value's.",
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
    critic_optimizer: Literal["kfac", "adam"] = setting(
        "kfac",
        "What trains a critic with a torso of its own: K-FAC with the Gauss-Newton metric, or Adam.",
        typical="kfac",
        origin="Wu et al. 2017, who compare both",
    )
    critic_lr: float = setting(
        0.25,
        "Largest step size of a critic with a torso of its own; Adam's learning rate.",
        typical="0.1 to 1; Adam: 3e-4 to 3e-3",
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
    critic_damping: float = setting(
        0.01,
        "lambda of a critic with a torso of its own.",
        typical="1e-3 to 0.1",
        origin="as damping",
        low=0,
    )
    critic_momentum: float = setting(
        0.9,
        "Decay of the averaged natural gradient of a critic with a torso of its own.",
        typical="0 to 0.95",
        origin="as momentum",
        low=0,
        high=0.9999,
    )
    critic_iterations: int = setting(
        1,
        "Steps on each whole batch of a critic with a torso of its own.",
        typical="1 to 25",
        origin="this project; Wu et al. 2017, their code for vectors: 25",
        low=1,
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
    curvature: Literal["kfac", "ekfac", "kfoc", "ekfoc", "diagonal", "full"] = setting(
        "kfac",
        "kfac: Kronecker factors; ekfac: second moments in their eigenbasis; kfoc: the nearest Kronecker product; "
        "ekfoc: both; diagonal: no basis; full: whole blocks, of at most 5,000 parameters a layer.",
        typical="kfac",
        origin="Martens & Grosse 2015; George et al. 2018; Schnaus et al. 2021",
    )
    structure: Literal["block-diagonal", "block-tridiagonal"] = setting(
        "block-diagonal",
        "block-tridiagonal: the inverse couples neighbouring layers; curvature kfac, factored damping, layers in a "
        "chain.",
        typical="block-diagonal",
        origin="Martens & Grosse 2015, section 4",
    )
    exploration: Literal["none", "noisy-kfac"] = setting(
        "none",
        "noisy-kfac: each rollout acts on weights drawn from the posterior that the policy's curvature gives, and the "
        "step moves their mean; beside the sampling of actions.",
        typical="none",
        origin="Zhang et al. 2018",
    )
    noise_examples: int = setting(
        100_000,
        "N of that posterior: its covariance is (F + 1 / (N eta))^-1 / N, so more is less noise.",
        typical="1e4 to 1e7",
        origin="this project: about as many as there are steps that the curvature remembers",
        low=1,
    )
    noise_prior: float = setting(
        1.0,
        "eta of that posterior, the variance of each weight where nothing is known of it.",
        typical="0.001 to 1",
        origin="Zhang et al. 2018",
        low=0,
        low_open=True,
    )
    kfoc_steps: int = setting(
        1,
        "Steps of K-FOC's power method on each batch, from the running factors.",
        typical="1 to 3",
        origin="this project: a second one gains 0.1 % of the error",
        low=1,
    )
    kfoc_aggregation: Literal["running", "approx"] = setting(
        "running",
        "running: the product nearest to the running one and the batch's together; approx: each factor by itself.",
        typical="running",
        origin="Schnaus et al. 2021",
    )
    compat: Literal["none", "baselines"] = setting(
        "none",
        "baselines: rescaling and momentum as in the published code; the preset atari-baselines has its settings.",
        typical="none",
        origin="openai/baselines acktr",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class A2CSettings:
    """The first-order baseline alone."""

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
