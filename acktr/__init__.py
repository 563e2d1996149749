"""ACKTR: actor-critic using Kronecker-factored trust region, and K-FAC as an optimizer of its own."""

from acktr._version import __version__

__all__ = ["__version__"]
