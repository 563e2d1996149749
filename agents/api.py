"""The library's front door: `ACKTR(env).learn(n)`, `.predict(obs)`, `.save(path)`, `load(path)`."""

import contextlib
import dataclasses
import operator
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, SupportsIndex

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import nn

from acktr.agents import checkpoint, policy_files
from acktr.agents.evaluation import MOST_ENVS, customary, evaluate, playing_settings
from acktr.agents.idle_settings import without_effect
from acktr.agents.observations import as_batch, to_tensors
from acktr.agents.plots import plot
from acktr.agents.presets import resolve
from acktr.agents.reporting import Reporter
from acktr.agents.run_folder import CURVE_FILE, RunFolder
from acktr.agents.runs import (
    build_policy,
    build_updater,
    choose_device,
    is_convolutional,
    make_environment,
    with_choices,
    with_precision,
)
from acktr.agents.settings import EVALUATION_SEED, Settings
from acktr.agents.spaces import alike, first_difference, space_from_dict
from acktr.agents.streams import Streams
from acktr.agents.threads import set_threads
from acktr.agents.trainer import Trainer
from acktr.envs.make import EnvironmentLike, describe
from acktr.envs.registry import find_spec
from acktr.envs.vector import VectorEnvironment
from acktr.errors import UserError
from acktr.process import world_size


class Agent:
    """A policy with what trains it.

    Args:
        env: an environment id, a function that makes one environment, or a vector environment in any autoreset mode.
        preset: name of a preset or path of a YAML file; None takes the one of the environment's family.
        torso: a network of one's own from encoded observations to features, in place of the preset's.
        run_dir: folder for checkpoints and metrics as `acktr train` leaves them; None keeps nothing on disk.
        verbose: print progress.
        settings: any of `acktr.Settings`, as keywords.

    Raises:
        UserError: an unknown environment or setting, or a value out of range.
    """

    algorithm: ClassVar[str]

    def __init__(
        self,
        env: EnvironmentLike,
        *,
        preset: str | Path | None = None,
        torso: nn.Module | None = None,
        run_dir: Path | str | None = None,
        verbose: bool = False,
        **settings: Any,
    ) -> None:
        if "algorithm" in settings:
            raise UserError("the class says which algorithm it is: use acktr.ACKTR or acktr.A2C")
        overrides = dict(settings, algorithm=self.algorithm)
        if isinstance(env, VectorEnv):
            overrides["num_envs"] = env.num_envs
        name, family = describe(env)
        resolved = resolve({**overrides, "env": name}, preset=preset, family=family)
        complete = resolved.settings()
        notes = (*resolved.notes, *without_effect(complete, settings, alone=True))
        self._build(complete, env=env, torso=torso, run_dir=run_dir, verbose=verbose, notes=notes)

    def _build(
        self,
        settings: Settings,
        *,
        env: EnvironmentLike,
        torso: nn.Module | None,
        run_dir: Path | str | None,
        verbose: bool,
        notes: Sequence[str] = (),
        going_on: tuple[RunFolder, int] | None = None,
    ) -> None:
        if world_size() > 1:
            warnings.warn(
                f"{world_size()} processes were started together, and each makes an agent of its own here; `acktr "
                "train` trains one over all of them",
                stacklevel=3,
            )
        self._env, self._total_timesteps = env, settings.total_timesteps
        self._is_closed, self._held = False, contextlib.ExitStack()
        environment = make_environment(settings, env)
        settings = with_choices(settings, environment)
        set_threads(settings.num_threads, small=not is_convolutional(settings, environment))
        device, _ = choose_device(settings, environment)
        settings, _ = with_precision(settings, environment, device)
        streams = Streams(settings.seed, device)
        streams.seed_globals()
        policy = build_policy(settings, environment, device, torso=torso)
        updater = build_updater(settings, policy, streams)
        folder, timesteps = going_on or (None, None)
        if run_dir is not None:
            folder = RunFolder.create(settings, Path(run_dir))
        elif folder is not None:  # whose metrics the reporter cuts off behind the checkpoint
            self._held.enter_context(folder.lock())
        self._run_dir = None if folder is None else folder.path
        reporter = Reporter(folder, settings, console=verbose, resume_at=timesteps)
        for note in (*notes, *environment.notes):
            reporter.message(note)
        self._trainer = Trainer(
            settings, environment, policy, updater=updater, streams=streams, reporter=reporter, folder=folder
        )

    @property
    def policy(self) -> nn.Module:
        """The network, an `acktr.agents.policy.ActorCritic`."""
        return self._trainer.policy

    @property
    def settings(self) -> Settings:
        """The resolved settings."""
        return self._trainer.settings

    @property
    def timesteps(self) -> int:
        """Agent decisions learnt from so far."""
        return self._trainer.timesteps

    @property
    def return_mean(self) -> float | None:
        """Mean raw return of the last full episodes (at most 100) met in training; None before the first."""
        returns = self._trainer.returns
        return float(np.mean(returns)) if returns else None

    def learn(self, total_timesteps: float | None = None) -> Self:
        """Train for that many further timesteps; schedules run over this call.

        Args:
            total_timesteps: a whole number; 1e6 will do. None takes the setting `total_timesteps`.

        Raises:
            UserError: not a whole number of at least one, or the agent was closed.
            RunError: training diverged.
        """
        if self._is_closed:
            raise UserError("the agent is closed and learns no more; acktr.load(run folder or file) makes another one")
        if total_timesteps is None:
            total_timesteps = self._total_timesteps
        whole = isinstance(total_timesteps, int | float | np.number) and total_timesteps == total_timesteps // 1
        if not whole or total_timesteps < 1:
            raise UserError(f"learn takes a whole number of at least 1 timestep, got {total_timesteps!r}")
        self._trainer.extend(int(total_timesteps))
        self._trainer.train()
        if self._run_dir is not None and self._trainer.episodes:
            plot([self._run_dir], self._run_dir / CURVE_FILE)
        return self

    def evaluate(
        self,
        episodes: int = 30,
        *,
        deterministic: bool | None = None,
        seed: int = EVALUATION_SEED,
        env: EnvironmentLike | None = None,
    ) -> dict[str, Any]:
        """Play full games in fresh environments and sum up their raw returns, as `acktr evaluate` does.

        Args:
            episodes: games in all.
            deterministic: greedy or sampled actions; None takes what is customary: sampled on Atari, greedy elsewhere.
            seed: of the games and of sampled actions.
            env: where to play, e.g. the environment without a wrapper that only training needs; None takes what the
                agent was made with, which must not be a vector environment: training is in the middle of its episodes.

        Returns:
            What `acktr evaluate` puts into `evaluation.json`: returns (of each game, raw), return_mean, return_std (of
            n - 1, None for a single game), return_median, return_ci95 (low and high of Student's t, None for a single
            game), length_mean (decisions), human_normalised (Atari), truncated and stalled (games that a limit ended;
            those of them whose last half brought no reward), env, episodes, protocol and versions.

        Raises:
            UserError: an environment of other spaces, none to play in, or no whole number of games.
        """
        if isinstance(episodes, bool) or not isinstance(episodes, SupportsIndex) or operator.index(episodes) < 1:
            raise UserError(f"evaluate takes a whole number of at least 1 episode, got {episodes!r}")
        chosen = self._env if env is None else env
        if isinstance(chosen, VectorEnv) and env is None:
            raise UserError("the agent was made with a vector environment, which training goes on in; pass env=")
        number = chosen.num_envs if isinstance(chosen, VectorEnv) else min(MOST_ENVS, episodes)
        trainer = self._trainer
        environment = make_environment(playing_settings(self.settings, number, self.settings.device), chosen)
        try:
            _check_spaces(trainer.policy_state(), environment, "the policy")
            return evaluate(
                trainer.policy,
                environment,
                episodes=episodes,
                deterministic=customary(environment) if deterministic is None else deterministic,
                seed=seed,
                device=trainer.device,
            )
        finally:
            if not isinstance(chosen, VectorEnv):  # the caller's own stays open
                environment.close()

    def predict(self, observation: Any, *, deterministic: bool = False) -> NDArray[Any]:
        """Actions for one observation or a batch of them, as the environment's own spaces have them.

        Args:
            observation: `(*space)` or `(N, *space)`; for a Dict or Tuple space a mapping or tuple of such.
            deterministic: take the mode instead of a draw.

        Returns:
            One action, or N.

        Raises:
            UserError: another shape, other keys, or numbers that no observation of the environment is.
        """
        environment = self._trainer.environment
        batch, single = as_batch(environment.source_observation_space, observation)
        actions = self._trainer.policy.act(
            to_tensors(environment.policy_observations(batch), self._trainer.device),
            generator=self._trainer.streams.actions,
            deterministic=deterministic,
        )
        converted = environment.environment_actions(actions.cpu().numpy())
        result: NDArray[Any] = converted[0] if single else converted
        return result

    def save(self, path: Path | str) -> None:
        """Write everything that using the policy or training it further takes, in one pickle-free file.

        Raises:
            UserError: the file cannot be written.
        """
        policy_files.write(Path(path), self._trainer.state_dict(), kind="checkpoint")

    def __repr__(self) -> str:
        """Return algorithm, environment and experience, e.g. ACKTR('CartPole-v1', timesteps=20000)."""
        return f"{type(self).__name__}({self.settings.env!r}, timesteps={self.timesteps})"

    def close(self) -> None:
        """Close the environments and the records; the agent then predicts, and learns no more."""
        self._is_closed = True
        self._trainer.reporter.close()
        self._trainer.environment.close()
        self._held.close()


class ACKTR(Agent):
    """Actor-critic using Kronecker-factored trust region; see `Agent`."""

    algorithm = "acktr"


class A2C(Agent):
    """The first-order baseline; see `Agent`."""

    algorithm = "a2c"


def load(
    path: Path | str,
    env: EnvironmentLike | None = None,
    *,
    torso: nn.Module | None = None,
    resume: bool = False,
    verbose: bool = False,
) -> Agent:
    """An agent from a run folder, or from a file that `Agent.save`, a run's `checkpoints/` or `acktr export` made.

    From the first two it goes on as if it had never stopped. An exported policy holds weights alone: it predicts, and
    if it learns further, it does so from them with fresh curvature and counters.

    Args:
        path: the file, or a run folder, whose final or else last checkpoint is taken.
        env: the environment to go on with; None makes the one whose id the file names.
        torso: the network of one's own that the agent was made with, of the same shapes; its weights are replaced.
        resume: of a run folder, go on in it: from its newest checkpoint, and its metrics and checkpoints with it, as
            `acktr resume` does. Without it the folder is left as it is.
        verbose: print progress.

    Raises:
        UserError: the file is damaged or foreign, or was made for other spaces than the environment's; or it is no run
            folder, one without a checkpoint, or one in which another process trains, where `resume` is asked for.
    """
    file, folder = Path(path), None
    if resume:
        folder = RunFolder.open(file)
        latest = folder.latest_checkpoint()
        if latest is None:
            raise UserError(f"{folder.path}: has no checkpoint to go on from; remove it and train anew")
        file = latest
    elif file.is_dir():
        file = RunFolder.open(file).evaluation_checkpoint()
    state: Mapping[str, Any] = checkpoint.load(file).state
    policy_files.check_state(state, file)
    settings = Settings.from_dict(state["settings"], source=str(path))
    if isinstance(env, VectorEnv):
        settings = dataclasses.replace(settings, num_envs=env.num_envs)
    if env is None:
        policy_files.check_remakable(state, file)
        _check_id(settings.env, file)
    agent = (ACKTR if settings.algorithm == "acktr" else A2C).__new__(ACKTR if settings.algorithm == "acktr" else A2C)
    going_on = None
    if folder is not None:
        going_on = folder, int(state["timesteps"])
    made_of = settings.env if env is None else env
    agent._build(settings, env=made_of, torso=torso, run_dir=None, verbose=verbose, going_on=going_on)
    try:
        _check_spaces(state, agent._trainer.environment, path)
    except UserError:
        agent.close()
        raise
    try:
        if "training" in state:
            agent._trainer.load_state_dict(state)
        else:
            agent._trainer.policy.load_state_dict(dict(state["policy"]))
    except (KeyError, RuntimeError, ValueError) as error:
        agent.close()
        if state.get("own_torso") and torso is None:
            raise UserError(f"{path}: has a torso of one's own; pass it: acktr.load(file, torso=...)") from error
        reason = " ".join(str(error).split())[:200]
        network = "its settings' network" if torso is None else "the torso given"
        raise UserError(f"{path}: the weights are not those of {network}: {reason}") from error
    if folder is not None:
        folder.record_start()
    return agent


def _check_spaces(state: Mapping[str, Any], environment: VectorEnvironment, what: Path | str) -> None:
    """Refuse a policy for an environment of other spaces; ranges of observations and actions may differ."""
    for name in ("observation_space", "action_space"):
        found = first_difference(name, space_from_dict(state[name]), getattr(environment, name), alike)
        if found is not None:
            where, then, now = found
            raise UserError(f"{what}: was made for {where} {then}; that of '{environment.id}' is {now}")


def _check_id(name: str, file: Path) -> None:
    try:
        find_spec(name)
    except UserError as error:
        raise UserError(
            f"{file}: {error}; an agent made with a function of your own takes it again: acktr.load(file, env=function)"
        ) from error
