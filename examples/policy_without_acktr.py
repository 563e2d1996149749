"""An exported policy without this package: torch, numpy and safetensors are enough to act by it.

The file that `acktr export` writes holds the weights and, under one key of its metadata, JSON with the settings and the
spaces. What follows reads both and computes the action that `acktr.load(file).predict(observation, deterministic=True)`
gives, for networks of this package on Box and Discrete observations, with Discrete and Box actions.

    python policy_without_acktr.py                                       # examples/policies/halfcheetah.safetensors
    python policy_without_acktr.py policies/pong.safetensors
    python policy_without_acktr.py FILE --observations batch.npy         # one observation per row
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "elu": functional.elu}
STRIDES = {"nature": ((4, 0), (2, 0), (1, 0)), "small-conv": ((2, 1),) * 16}
"""Stride and padding of each convolution."""


class Policy:
    """A policy from a file.

    Args:
        file: written by `acktr export`, or a checkpoint.
    """

    def __init__(self, file: Path) -> None:
        with safe_open(file, framework="pt") as opened:
            manifest = json.loads(opened.metadata()["acktr"])
            self.weights = {
                name.removeprefix("policy/"): opened.get_tensor(name)
                for name in opened.keys()  # noqa: SIM118  # it is no dictionary
                if name.startswith("policy/")
            }
        described = {name: plain(manifest["tree"][name]) for name in ("settings", "observation_space", "action_space")}
        self.settings: dict[str, Any] = described["settings"]
        self.observations: dict[str, Any] = described["observation_space"]
        self.actions: dict[str, Any] = described["action_space"]
        if self.observations["type"] not in ("Box", "Discrete") or self.actions["type"] not in ("Box", "Discrete"):
            raise SystemExit(f"{file}: only Box and Discrete spaces are understood here")

    @torch.no_grad()
    def act(self, observations: NDArray[Any]) -> NDArray[Any]:
        """Most probable actions of N observations; for a Box from -1 to 1, which stand for the action's bounds."""
        features = self.torso(self.encoded(torch.as_tensor(observations)))
        if self.actions["type"] == "Discrete":
            return self.linear("policy_head.logits", features).argmax(-1).numpy()
        mean = self.linear("policy_head.mean", features)
        actions: NDArray[Any] = (torch.tanh(mean) if self.settings["squash_actions"] else mean).numpy()
        return np.clip(actions, np.asarray(self.actions["low"]), np.asarray(self.actions["high"]))

    def encoded(self, observations: Tensor) -> Tensor:
        """Frames from 0 to 1, numbers shifted and scaled as in training, choices as one-hot."""
        if self.observations["type"] == "Discrete":
            return functional.one_hot(observations.long(), self.observations["n"]).float()
        if self.observations["dtype"] == "uint8" and len(self.observations["shape"]) == 3:
            return observations.float() / 255
        rows = observations.float().flatten(1)
        if "encoder.norm.shift" in self.weights:
            rows = (rows - self.weights["encoder.norm.shift"]) * self.weights["encoder.norm.scale"]
            rows = rows.clamp(-10, 10)
        return rows

    def torso(self, rows: Tensor) -> Tensor:
        """Convolutions and linear layers, with an activation behind each."""
        layers = sorted({int(name.split(".")[1]) for name in self.weights if name.startswith("torso.")})
        geometry = iter(STRIDES.get("nature" if self.settings["network"] == "auto" else self.settings["network"], ()))
        convolutional = False
        for layer in layers:
            name = f"torso.{layer}"
            if self.weights[f"{name}.weight"].dim() == 4:
                stride, padding = next(geometry)
                weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
                rows = torch.relu(functional.conv2d(rows, weight, bias, stride, padding))
                convolutional = True
            else:
                activation = torch.relu if convolutional else ACTIVATIONS[self.settings["activation"]]
                rows = activation(self.linear(name, rows.flatten(1)))
        return rows

    def linear(self, name: str, rows: Tensor) -> Tensor:
        """One layer of the file."""
        return functional.linear(rows, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


def plain(value: Any) -> Any:
    """JSON of these files as Python values: an object says what it stands for by its one key."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "dict":
        return {name: plain(item) for name, item in content.items()}
    return {"float": float, "int": lambda text: int(text, 16)}.get(tag, str)(content)


def main() -> None:
    """Print the actions of a few observations."""
    default = Path(__file__).parent / "policies" / "halfcheetah.safetensors"
    parser = argparse.ArgumentParser(description="an exported policy without acktr")
    parser.add_argument("file", type=Path, nargs="?", default=default)
    parser.add_argument("--observations", type=Path, help="a .npy file (N, *shape); else three drawn ones")
    arguments = parser.parse_args()
    policy = Policy(arguments.file)
    if arguments.observations is not None:
        observations = np.load(arguments.observations)
    elif policy.observations["type"] == "Discrete":
        observations = np.arange(min(3, policy.observations["n"]))
    else:
        draws = np.random.default_rng(0).uniform(0, 1, (3, *policy.observations["shape"]))
        observations = (255 * draws if policy.observations["dtype"] == "uint8" else draws).astype(np.float32)
    print(json.dumps(policy.act(observations).tolist()))


if __name__ == "__main__":
    main()
