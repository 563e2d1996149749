"""ACKTR: actor-critic using Kronecker-factored trust region, and K-FAC as an optimizer of its own.

Public names are imported on first use, so that `import acktr` and `acktr --help` do not import torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acktr._version import __version__

# In a source tree the folders `agents`, `envs` and `configs` lie beside this one, where an import from the tree's root
# would not find them.
if not (Path(__file__).parent / "agents").exists():
    __path__.append(str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from acktr.agents.api import A2C, ACKTR, Agent, load
    from acktr.agents.settings import Settings
    from acktr.errors import RunError, UserError
    from acktr.kfac import KFAC

_HOMES = {
    "A2C": "acktr.agents.api",
    "ACKTR": "acktr.agents.api",
    "KFAC": "acktr.kfac",
    "Agent": "acktr.agents.api",
    "RunError": "acktr.errors",
    "Settings": "acktr.agents.settings",
    "UserError": "acktr.errors",
    "load": "acktr.agents.api",
}

__all__ = ["A2C", "ACKTR", "KFAC", "Agent", "RunError", "Settings", "UserError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'acktr' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
