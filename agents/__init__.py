"""Agents: networks, rollouts, the A2C and ACKTR updates, the training loop, checkpoints and reports."""
