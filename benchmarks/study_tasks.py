"""Tasks of the study of curvatures on real data: each is a data set, a network, its loss and the metric of its outputs.

- digits-autoencoder: scikit-learn's 1,797 digits of 8 x 8 pixels, a deep autoencoder in the style of Hinton &
  Salakhutdinov 2006 and Martens & Grosse 2015, pixels as independent Bernoullis.
- digits-convolutional: the same digits classified by three convolutions and a linear layer.
- frames-autoencoder: 20,000 frames of five Atari games under a random policy, 21 x 21 grey, less their mean; a deep
  autoencoder, pixels as Gaussians of deviation 0.1.

Losses are in nats per example, summed over pixels. Everything follows from the seed.
"""

import dataclasses
import hashlib
import itertools
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent
from torch.nn import functional

from acktr.envs.make import make_vec
from acktr.kfac import Fisher, GaussNewton, Metric
from acktr.kfac.metrics import FisherKind

GAMES = ("Breakout", "MsPacman", "Pong", "Seaquest", "SpaceInvaders")
FRAMES = 20_000
SIZE = 21
"""Pixels of a side: each is the mean of 4 x 4 of the 84 x 84 that policies see."""
DEVIATION = 0.1
"""Of a pixel, in the frames; black is 0 and white 1."""
COPIES = 8
"""Of each game, played at the same time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Data and what is done with them.

    Attributes:
        name: for tables and files.
        inputs: (N, ...) float32.
        targets: (N, ...) what the outputs are compared with.
        evaluated: (M,) indices of the examples that the training loss is measured on, the same ones always.
        batch_size: examples per iteration.
        network: makes the network; its initial weights come from torch's default generator.
        example_losses: (N,) nats from outputs and targets.
        metric: of outputs, of a kind, with a source of draws.
        lowest: no output has a smaller mean loss on the evaluated examples: the entropy of pixels that are not binary.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    evaluated: Tensor
    batch_size: int
    network: Callable[[], nn.Module]
    example_losses: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, FisherKind, torch.Generator | None], Metric]
    lowest: float = 0.0

    def model(self, seed: int) -> nn.Module:
        """The network with the initial weights of a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.network()

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of `batch_size` examples, none of them twice."""
        chosen = torch.randperm(len(self.inputs), generator=generator)[: self.batch_size]
        return self.inputs[chosen], self.targets[chosen]

    @torch.no_grad()
    def training_loss(self, model: nn.Module) -> float:
        """Mean loss of the evaluated examples above the lowest possible, nats."""
        losses = [
            self.example_losses(model(self.inputs[part]), self.targets[part]) for part in self.evaluated.split(2000)
        ]
        return float(torch.cat(losses).double().mean()) - self.lowest


def make(name: str) -> Task:
    """The task of that name."""
    return TASKS[name]()


def digits_autoencoder() -> Task:
    """64-128-64-32-8-32-64-128-64, tanh, the code and the logits linear."""
    pixels, _ = _digits()
    return Task(
        name="digits-autoencoder",
        inputs=pixels,
        targets=pixels,
        evaluated=torch.arange(len(pixels)),
        batch_size=500,
        network=lambda: autoencoder([64, 128, 64, 32, 8]),
        example_losses=lambda logits, pixels: functional.binary_cross_entropy_with_logits(
            logits, pixels, reduction="none"
        ).sum(1),
        metric=lambda logits, kind, generator: Fisher(
            distribution=Independent(Bernoulli(logits=logits), 1), kind=kind, generator=generator
        ),
        lowest=float(Bernoulli(probs=pixels.double()).entropy().sum(1).mean()),
    )


def digits_convolutional() -> Task:
    """Convolutions 3 x 3 of 8, 16 and 16 channels, the second of stride 2, and a linear layer; tanh."""
    pixels, labels = _digits()
    return Task(
        name="digits-convolutional",
        inputs=pixels.view(-1, 1, 8, 8),
        targets=labels,
        evaluated=torch.arange(len(pixels)),
        batch_size=500,
        network=lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(16, 16, 3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(64, 10),
        ),
        example_losses=lambda logits, labels: functional.cross_entropy(logits, labels, reduction="none"),
        metric=lambda logits, kind, generator: Fisher(
            distribution=Categorical(logits=logits), kind=kind, generator=generator
        ),
    )


def frames_autoencoder() -> Task:
    """441-128-64-32-16-32-64-128-441, tanh, the code and the output linear."""
    pixels = torch.from_numpy(atari_frames()).float().div_(255).flatten(1)
    pixels -= pixels.mean(0)
    return Task(
        name="frames-autoencoder",
        inputs=pixels,
        targets=pixels,
        evaluated=torch.arange(0, len(pixels), 4),
        batch_size=500,
        network=lambda: autoencoder([pixels.shape[1], 128, 64, 32, 16]),
        example_losses=lambda outputs, pixels: ((outputs - pixels) / DEVIATION).square().sum(1) / 2,
        metric=lambda outputs, kind, generator: GaussNewton(
            values=outputs, sigma=DEVIATION, kind=kind, generator=generator
        ),
    )


def autoencoder(widths: list[int]) -> nn.Sequential:
    """From the first width to the last and back; tanh between layers, except at the code and at the output."""
    sizes = widths + widths[-2::-1]
    layers: list[nn.Module] = []
    for index, (narrow, wide) in enumerate(itertools.pairwise(sizes)):
        layers.append(_linear(narrow, wide))
        if index + 2 not in (len(widths), len(sizes)):
            layers.append(nn.Tanh())
    return nn.Sequential(*layers)


def atari_frames() -> NDArray[np.uint8]:
    """(20,000, 21, 21): frames of the package's Atari environments under a uniformly random policy, every game alike.

    Kept in the system's folder for temporary files; made anew in some seconds where it is not there.
    """
    recipe = repr((GAMES, FRAMES, COPIES, SIZE))
    path = Path(tempfile.gettempdir()) / f"acktr-study-frames-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.npy"
    if path.exists():
        kept: NDArray[np.uint8] = np.load(path)
        return kept
    games = [_play(game, seed=1000 * index) for index, game in enumerate(GAMES)]
    frames = np.concatenate(games)
    small = frames.reshape(len(frames), SIZE, 84 // SIZE, SIZE, 84 // SIZE).mean((2, 4)).round().astype(np.uint8)
    unfinished = path.with_suffix(f".{os.getpid()}.npy")
    np.save(unfinished, small)
    unfinished.replace(path)
    return small


def _play(game: str, *, seed: int) -> NDArray[np.uint8]:
    """(4,000, 84, 84) frames, the newest of each observation."""
    environment = make_vec(f"{game}NoFrameskip-v4", COPIES, num_threads=1)
    generator = np.random.default_rng(seed)
    observations: Any = environment.reset([seed + copy for copy in range(COPIES)])
    frames = []
    for _ in range(FRAMES // len(GAMES) // COPIES):
        frames.append(observations[:, -1].copy())
        actions: Any = environment.action_space
        observations = environment.step(generator.integers(actions.n, size=COPIES)).observations
    environment.close()
    return np.concatenate(frames)


def _digits() -> tuple[Tensor, Tensor]:
    """(1797, 64) pixels from 0 to 1, and (1797,) labels."""
    digits = load_digits()
    return torch.from_numpy(digits.data / 16).float(), torch.from_numpy(digits.target)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """With Glorot & Bengio's normal weights and no bias at first, as is usual for tanh."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (inputs + outputs)))
    nn.init.zeros_(layer.bias)
    return layer


TASKS: dict[str, Callable[[], Task]] = {
    "digits-autoencoder": digits_autoencoder,
    "digits-convolutional": digits_convolutional,
    "frames-autoencoder": frames_autoencoder,
}
