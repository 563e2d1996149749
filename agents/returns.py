"""Advantages and value targets: pure functions."""

import torch
from torch import Tensor


def gae(
    *,
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminals: Tensor,
    truncations: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438), cut at every end of an episode.

        delta_t = r_t + gamma · next_value_t · (1 - terminal_t) - V(s_t)
        A_t     = delta_t + gamma · lambda · (1 - terminal_t) · (1 - truncated_t) · A_{t+1}

    With lambda = 1 these are n-step returns minus the values. The value targets are advantages + values. Rows that
    are no real transition get numbers that mean nothing; give them weight 0.

    Args:
        rewards: (T, N) as learnt from.
        values: (T, N) of the visited states.
        next_values: (T, N) of the successor states; of the true final observation where an episode was truncated.
        terminals: (T, N) bool, the bootstrap is cut; wins where both flags are set.
        truncations: (T, N) bool, the episode ended by a limit: bootstrap, but do not run on into the next episode.
        gamma: discount.
        gae_lambda: lambda.

    Returns:
        Advantages (T, N).
    """
    # chosen, not multiplied: what lies beyond an end may be no number, and 0 times that is none either
    deltas = rewards + torch.where(terminals, 0.0, gamma * next_values) - values
    ended = terminals | truncations
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for step in range(len(deltas) - 1, -1, -1):
        running = deltas[step] + torch.where(ended[step], 0.0, gamma * gae_lambda * running)
        advantages[step] = running
    return advantages
