"""Every random stream of a run, derived from its one seed.

Draws belong to the global environment: one action stream serves all environments, and environment k is seeded by its
global index, so that a run can be spread over processes unchanged.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_ACTIONS, _FISHER, _WEIGHTS, _ENVIRONMENTS = range(4)


class Streams:
    """The generators of one run.

    Args:
        seed: of the run.
        device: where actions and Fisher samples are drawn.

    Attributes:
        actions: draws of actions.
        fisher: draws for the sampled Fisher.
        resets: how often all environments were reset with seeds.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self.actions = torch.Generator(device).manual_seed(_derive(seed, _ACTIONS))
        self.fisher = torch.Generator(device).manual_seed(_derive(seed, _FISHER))
        self.resets = 0

    def seed_globals(self) -> None:
        """Seed the process-wide generators of Python, NumPy and torch, which user code and initialisers draw from."""
        derived = _derive(self._seed, _WEIGHTS)
        random.seed(derived)
        np.random.seed(derived % 2**32)  # noqa: NPY002  third-party environments draw from the legacy generator
        torch.manual_seed(derived)

    def environment_seeds(self, num_envs: int) -> list[int]:
        """Fresh seeds, one per global environment index; every call gives others."""
        seeds = [_derive(self._seed, _ENVIRONMENTS, self.resets, index) for index in range(num_envs)]
        self.resets += 1
        return seeds

    def state_dict(self) -> dict[str, Any]:
        """States of all generators, the process-wide ones included."""
        version, words, gauss = random.getstate()
        legacy = np.random.get_state(legacy=False)  # noqa: NPY002  the generator that third parties draw from
        state: dict[str, Any] = {
            "resets": self.resets,
            "actions": self.actions.get_state(),
            "fisher": self.fisher.get_state(),
            "python": [version, list(words), gauss],
            "numpy": {
                "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
                "pos": int(legacy["state"]["pos"]),
                "has_gauss": int(legacy["has_gauss"]),
                "gauss": float(legacy["gauss"]),
            },
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.resets = state["resets"]
        self.actions.set_state(state["actions"])
        self.fisher.set_state(state["fisher"])
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        saved = state["numpy"]
        np.random.set_state(  # noqa: NPY002  likewise
            {
                "bit_generator": "MT19937",
                "state": {"key": saved["key"].numpy().astype(np.uint32), "pos": saved["pos"]},
                "has_gauss": saved["has_gauss"],
                "gauss": saved["gauss"],
            }
        )
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(list(state["cuda"]))


def _derive(seed: int, *path: int) -> int:
    """A 31-bit seed for one stream of the run, independent of all others."""
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1)[0] >> 1)
