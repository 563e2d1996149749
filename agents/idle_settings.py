"""Settings that were given and that the other settings leave without effect: worth a word before a run. No torch."""

import dataclasses
from collections.abc import Collection

from acktr.agents.settings import Settings
from acktr.agents.settings_optimizer import A2CSettings, OptimizerSettings

_SHARED_WITH_A2C = {"lr", "lr_schedule", "reuse_forward"}
_OF_ACKTR = {field.name for field in dataclasses.fields(OptimizerSettings)} - _SHARED_WITH_A2C | {"center_values"}
_OF_A2C = {field.name for field in dataclasses.fields(A2CSettings)}
_OF_CRITIC = {name for name in _OF_ACKTR if name.startswith("critic_")}
_OF_KFAC_CRITIC = {"critic_max_kl", "critic_damping", "critic_momentum"}
_OF_KFOC = {"kfoc_steps", "kfoc_aggregation"}
_OF_KRONECKER = {"damping_mode"}
_OF_NOISE = {"noise_examples", "noise_prior"}
_OF_POSITIONS = {"conv_factors", "position_stride"}
_WITHOUT_GRIDS = {"kfoc", "ekfoc", "diagonal", "full"}
"""Curvatures made of examples' whole gradients, which have no positions to leave out."""
_OF_PROCESSES = {"inverse_placement", "curvature_ranks", "rank_timeout"}
_OF_PIXELS = {"pixel_size", "frame_stack"}
_OF_CONVOLUTIONS = {"conv_channels", "conv_features", "zero_sum_filters"}


def without_effect(settings: Settings, given: Collection[str], *, alone: bool) -> tuple[str, ...]:
    """A line for each reason why settings that were given do nothing; none where all of them act.

    Args:
        settings: the complete settings.
        given: names of those that a person set, by flag or keyword.
        alone: whether one process trains.
    """
    found = idle(settings, given)
    if alone and (unshared := _OF_PROCESSES.difference(*found.values()) & set(given)):
        found["there is one process"] = unshared
    return tuple(f"without effect, as {reason}: {', '.join(sorted(names))}" for reason, names in found.items())


def idle(settings: Settings, names: Collection[str]) -> dict[str, set[str]]:
    """Those of the names that do nothing, by the reason why."""
    acktr, a2c = settings.algorithm == "acktr", settings.algorithm == "a2c"
    reasons = (
        (a2c, _OF_ACKTR, "algorithm is a2c"),
        (acktr, _OF_A2C, "algorithm is acktr"),
        (acktr and settings.shared_trunk, _OF_CRITIC, "shared_trunk is true"),
        (acktr and settings.critic_optimizer == "adam", _OF_KFAC_CRITIC, "critic_optimizer is adam"),
        (acktr and not settings.curvature.endswith("kfoc"), _OF_KFOC, "curvature is not K-FOC"),
        (acktr and settings.curvature in ("diagonal", "full"), _OF_KRONECKER, f"curvature is {settings.curvature}"),
        (acktr and settings.structure == "block-tridiagonal", _OF_POSITIONS, "structure is block-tridiagonal"),
        (acktr and settings.network == "mlp", _OF_POSITIONS, "network is mlp"),
        (acktr and settings.curvature in _WITHOUT_GRIDS, {"position_stride"}, f"curvature is {settings.curvature}"),
        (acktr and settings.exploration == "none", _OF_NOISE, "exploration is none"),
        (not settings.pixels, _OF_PIXELS, "pixels is false"),
        (settings.network == "mlp", _OF_CONVOLUTIONS, "network is mlp"),
        (settings.overlap, {"reuse_forward"}, "overlap is true"),
    )
    found: dict[str, set[str]] = {}
    for holds, group, reason in reasons:
        if holds and (matching := group & set(names)):
            found[reason] = found.get(reason, set()) | matching
    return found
