"""Where a GPU would be waited for, seen on a CPU."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def let_looks_be_free(free: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let K-FAC take a CPU for a device that is waited for, or any device for a CPU."""
    for name, module in list(sys.modules.items()):
        if name.startswith("acktr.kfac.") and hasattr(module, "looks_are_free"):
            monkeypatch.setattr(module, "looks_are_free", lambda tensor: free)


class HostReads(TorchDispatchMode):
    """Counts what a device would have to be waited for, and lets code that treats CPUs apart take the way of others."""

    _OPERATIONS = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "_unique")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        for name in ("tolist", "numpy", "cpu", "new_tensor"):  # these are no operations on a CPU, or of any device
            monkeypatch.setattr(torch.Tensor, name, self._counting(name))
        let_looks_be_free(False, monkeypatch)

    def _counting(self, name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def counted(tensor: Tensor, *args: Any, **options: Any) -> Any:
            self.found.append(name)
            return original(tensor, *args, **options)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        if name.startswith(self._OPERATIONS):
            self.found.append(name)
        return func(*args, **(kwargs or {}))
