"""Whole runs: make the environment, the policy and the folder, train, and leave everything in order."""

import contextlib
import dataclasses
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from acktr.agents.a2c import A2CUpdater
from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.plots import plot
from acktr.agents.policy import ActorCritic
from acktr.agents.policy_files import check_remakable
from acktr.agents.precision import choose_precision
from acktr.agents.reporting import Reporter
from acktr.agents.run_folder import CURVE_FILE, SETTINGS_FILE, RunFolder
from acktr.agents.settings import Settings
from acktr.agents.streams import Streams
from acktr.agents.threads import set_threads
from acktr.agents.trainer import Trainer
from acktr.agents.updates import Updater
from acktr.agents.world import World, joined, may_restart, restarts
from acktr.envs.batches import leaf_spaces
from acktr.envs.make import EnvironmentLike, make_vec
from acktr.envs.mujoco import Pixels
from acktr.envs.vector import VectorEnvironment
from acktr.errors import RunError, UserError
from acktr.kfac.distributed import LostRankError, Ranks
from acktr.kfac.service import dismiss, serve
from acktr.process import world_size

TOGETHER_SECONDS = 5.0
"""Ctrl-C reaches each process of torchrun's twice, from the terminal and from torchrun."""


def train(settings: Settings, *, run_dir: Path | None, notes: Sequence[str] = ()) -> Path:
    """Train from scratch into a new run folder; under torchrun together with all processes of the job.

    Where torchrun has started a failed job anew, this goes on with its run.

    Args:
        settings: resolved settings.
        run_dir: the run's own folder; None makes `runs/<env>/<algorithm>-seed<k>-<time>/`.
        notes: lines to print first, e.g. which preset was chosen.

    Returns:
        The run folder.

    Raises:
        UserError: the environment or the folder cannot be made, a setting does not fit, or processes disagree on one.
        RunError: training failed; the last good checkpoint is named.
        KeyboardInterrupt: after Ctrl-C, with everything saved.
    """
    if run_dir is None and may_restart():
        raise UserError("--max-restarts goes on with the run after a failure, and needs --run-dir to find it")
    if run_dir is not None and restarts() and (run_dir / SETTINGS_FILE).is_file():
        return resume(run_dir)
    if settings.curvature_ranks and settings.algorithm != "acktr":
        raise UserError(f"curvature_ranks make inverses, and algorithm {settings.algorithm} has none; leave them out")
    with joined(settings.rank_timeout, curvature_ranks=settings.curvature_ranks) as world:
        return _run(settings, world, lambda complete: RunFolder.create(complete, run_dir), notes=notes)


def resume(run: Path, *, total_timesteps: int | None = None, device: str | None = None) -> Path:
    """Go on with a run from its last checkpoint, in the same folder, with as many processes as there are now.

    Args:
        run: the run folder, which every process must find there.
        total_timesteps: a new end. Schedules of an interrupted run stretch from where they stand; those of a finished
            one start anew and run over the added timesteps. None keeps the old end.
        device: another device; None keeps the setting.

    Raises:
        UserError: no run folder, no checkpoint that loads, or another process is training in the folder.
        RunError: training failed; the last good checkpoint is named.
        KeyboardInterrupt: after Ctrl-C, with everything saved.
    """
    folder = RunFolder.open(run)
    settings = folder.settings
    changes: dict[str, object] = {}
    if total_timesteps is not None:
        changes["total_timesteps"] = total_timesteps
    if device is not None:
        changes["device"] = device
    if changes:
        settings = Settings.from_dict({**settings.to_dict(), **changes})

    def reopened(complete: Settings) -> RunFolder:
        if complete != folder.settings:
            folder.write_settings(complete)
        folder.record_start()
        return folder

    # what processes did is no part of a checkpoint: one alone makes its inverses by itself
    curvature_ranks = 0 if world_size() == 1 else settings.curvature_ranks
    with joined(settings.rank_timeout, curvature_ranks=curvature_ranks) as world:
        found = world.led(folder.load_latest, by_all=True)
        state = None if found is None else found[1].state
        done = 0 if state is None else state["timesteps"]
        if done >= settings.total_timesteps:
            if world.leads:
                print(
                    f"{run} has {done} of {settings.total_timesteps} timesteps, nothing is left to do; a larger "
                    "--total-timesteps trains further"
                )
            return folder.path
        if state is not None:
            check_remakable(state, run, torso=True)
        return _run(settings, world, reopened, going_on=(run, state))


def _run(
    settings: Settings,
    world: World,
    folder_for: Callable[[Settings], RunFolder],
    *,
    notes: Sequence[str] = (),
    going_on: tuple[Path, Mapping[str, Any] | None] | None = None,
) -> Path:
    """Train to the end.

    Args:
        settings: resolved settings.
        world: the processes of the job.
        folder_for: makes or opens the run folder for the complete settings.
        notes: lines to print first.
        going_on: the run that is resumed, with the state of its last checkpoint if it has one; None of a new run.
    """
    number = 1 if world.serves else world.part(settings.num_envs).count
    environment = make_environment(dataclasses.replace(settings, num_envs=number))
    try:
        settings = with_choices(settings, environment)
        set_threads(settings.num_threads, small=not is_convolutional(settings, environment))
        device, reason = choose_device(settings, environment)
        device = world.device(device)
        settings, precision = with_precision(settings, environment, device)
        world.agree(settings.to_dict(), apart_from=("vectorization",))
        streams = Streams(settings.seed, device)
        streams.seed_globals()
        policy = build_policy(settings, environment, device)
        updater = build_updater(settings, policy, streams, world.ranks)
        if world.serves:
            return _serve(updater, world)
        folder = world.led(lambda: folder_for(settings))
        state = None if going_on is None else going_on[1]
        done = 0 if state is None else state["timesteps"]
        with contextlib.ExitStack() as stack:
            world.led(lambda: stack.enter_context(folder.lock()))
            own = folder if world.leads else None
            reporter = Reporter(own, settings, console=world.leads, resume_at=None if going_on is None else done)
            stack.enter_context(reporter)
            for note in (*notes, *environment.notes, reason, precision):
                reporter.message(note)
            if not world.is_alone:
                servers = settings.curvature_ranks
                shares = sorted({settings.num_envs // world.size, -(-settings.num_envs // world.size)})
                more = f", and {servers} more for inverses" if servers else ""
                reporter.message(
                    f"processes: {world.size + servers}; {world.size} with {' or '.join(map(str, shares))} of "
                    f"{settings.num_envs} environments each{more}"
                )
            if going_on is None:
                reporter.message(f"run folder: {folder.path}")
            trainer = Trainer(
                settings,
                environment,
                policy,
                updater=updater,
                streams=streams,
                reporter=reporter,
                folder=own,
                world=world,
            )
            if state is not None and going_on is not None:
                _take_back(trainer, state, going_on[0])
                reporter.message(
                    f"resumed at {done} timesteps: weights, optimizer, curvature, counters and random streams came "
                    "back; environments start fresh episodes"
                )
            elif going_on is not None:
                reporter.message("no checkpoint was written before the interruption: starting from the beginning")
            try:
                _train_to_the_end(trainer, folder)
            except LostRankError as error:
                name = shlex.quote(str(folder.path))
                raise RunError(f"{world.loss(error)}; go on with `acktr resume {name}`") from error
    finally:
        environment.close()
    return folder.path


def _serve(updater: Updater, world: World) -> Path:
    """Make inverses until the other processes have ended."""
    assert isinstance(updater, ACKTRUpdater)
    assert world.ranks is not None
    # a signal is for those that save; this process ends with them
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        serve(world.ranks, updater.units())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return Path()


def _take_back(trainer: Trainer, state: Mapping[str, Any], run: Path) -> None:
    """Load a checkpoint's state, and lead the schedules on where the run got another end."""
    settings = trainer.settings
    before = Settings.from_dict(state["settings"], source=str(run)).total_timesteps
    try:
        trainer.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{run}: the checkpoint does not fit {SETTINGS_FILE}, which was changed since, or another version of "
            f"acktr wrote it: {reason}"
        ) from error
    if before == settings.total_timesteps:
        return
    if trainer.timesteps >= before:
        trainer.extend(settings.total_timesteps - trainer.timesteps)
        trainer.reporter.message("the run was finished: its schedules start anew over the added timesteps")
    else:
        trainer.settings = dataclasses.replace(settings, total_timesteps=before)
        trainer.stretch(settings.total_timesteps)


def make_environment(settings: Settings, env: EnvironmentLike | None = None) -> VectorEnvironment:
    """The environments that the settings describe, from their id or from `env`."""
    return make_vec(
        settings.env if env is None else env,
        settings.num_envs,
        terminal_on_life_loss=settings.terminal_on_life_loss,
        fire_after_life_loss=settings.fire_after_life_loss,
        noop_max=settings.noop_max,
        num_threads=settings.num_threads,
        pixels=pixels_of(settings),
        # pictures are drawn in the thread that asked for the first one, and overlap has two
        vectorization="async" if settings.overlap and settings.pixels else settings.vectorization,
    )


def pixels_of(settings: Settings) -> Pixels | None:
    """How the settings say that the environment is seen; None for its own observations."""
    return Pixels(size=settings.pixel_size, frame_stack=settings.frame_stack) if settings.pixels else None


def with_choices(settings: Settings, environment: VectorEnvironment) -> Settings:
    """The settings with what was chosen by measuring when the environment was made, so that a resumed run keeps it."""
    if environment.vectorization is None or settings.vectorization != "auto":
        return settings
    return dataclasses.replace(settings, vectorization=environment.vectorization)


def with_precision(settings: Settings, environment: VectorEnvironment, device: torch.device) -> tuple[Settings, str]:
    """The settings with the precision that suits network and device, so that a resumed run keeps it, and the reason.

    Raises:
        UserError: a precision that the device does not have.
    """
    dtype, reason = choose_precision(settings, device, convolutional=is_convolutional(settings, environment))
    return dataclasses.replace(settings, precision=str(dtype).removeprefix("torch.")), reason  # type: ignore[arg-type]


def build_policy(
    settings: Settings, environment: VectorEnvironment, device: torch.device, *, torso: nn.Module | None = None
) -> ActorCritic:
    """A fresh policy for the environment's spaces, on the device."""
    policy = ActorCritic(environment.observation_space, environment.action_space, settings, torso=torso).to(device)
    policy.use_precision(choose_precision(settings, device, convolutional=is_convolutional(settings, environment))[0])
    return policy


def build_updater(settings: Settings, policy: ActorCritic, streams: Streams, ranks: Ranks | None = None) -> Updater:
    """The algorithm that the settings name, for that policy.

    Raises:
        UserError: the policy has a layer too wide for a Kronecker factor.
    """
    if settings.algorithm == "acktr":
        return ACKTRUpdater(policy, settings, streams.fisher, ranks)
    return A2CUpdater(policy, settings)


def choose_device(settings: Settings, environment: VectorEnvironment) -> tuple[torch.device, str]:
    """The device that the settings name or that suits the network, and the reason in one line.

    Raises:
        UserError: a device that does not exist here.
    """
    available = torch.cuda.is_available()
    if settings.device == "auto":
        convolutional = is_convolutional(settings, environment)
        if available and convolutional:
            return torch.device("cuda"), f"device: cuda ({torch.cuda.get_device_name()}), for a convolutional policy"
        if available:
            return torch.device("cpu"), "device: cpu, faster than a GPU for a small MLP (--device cuda overrides)"
        return torch.device("cpu"), "device: cpu, no CUDA device found"
    try:
        device = torch.device(settings.device)
    except RuntimeError:
        raise UserError(f"setting 'device' takes auto, cpu, cuda or cuda:N, got '{settings.device}'") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"setting 'device' takes auto, cpu, cuda or cuda:N, got '{settings.device}'")
    if device.type == "cuda" and (not available or (device.index or 0) >= torch.cuda.device_count()):
        count = torch.cuda.device_count()
        raise UserError(
            f"device '{settings.device}' is not there: torch sees {count} CUDA devices; use --device cpu or auto"
        )
    return device, f"device: {device}, as set"


def is_convolutional(settings: Settings, environment: VectorEnvironment) -> bool:
    """Whether the settings come to a convolutional network on this environment."""
    frames = any(len(leaf.shape or ()) == 3 for leaf in leaf_spaces(environment.observation_space).values())
    return settings.network in ("nature", "small-conv") or (settings.network == "auto" and frames)


def _train_to_the_end(trainer: Trainer, folder: RunFolder) -> None:
    together = not trainer.world.is_alone
    with _interruptible(trainer.reporter, grace=TOGETHER_SECONDS if together else 0.0) as stop:
        complete = trainer.train(stop=lambda: bool(stop))
    if trainer.world.ranks is not None:
        dismiss(trainer.world.ranks, trainer.device)
    trainer.reporter.rest()
    name = shlex.quote(str(folder.path))
    if not complete:
        saved = "saved"
        if trainer.settings.exact_resume:
            begun = folder.latest_checkpoint() is not None
            saved = f"exact resume goes on from {'the last checkpoint' if begun else 'the beginning'}"
        trainer.reporter.message(f"{saved}; go on with `acktr resume {name}`")
        raise KeyboardInterrupt
    if not trainer.world.leads:
        return
    if trainer.episodes:
        plot([folder.path], folder.path / CURVE_FILE)
    else:
        trainer.reporter.message("no episode ended, so there is no curve")
    trainer.reporter.message(f"finished; evaluate with `acktr evaluate {name}`")


@contextlib.contextmanager
def _interruptible(reporter: Reporter, *, grace: float) -> Iterator[list[float]]:
    """A list that holds something once Ctrl-C or SIGTERM came; a second one ends the process at once.

    Args:
        reporter: told about the first one.
        grace: seconds in which further signals count as the first.
    """
    received: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and time.monotonic() - received[0] >= grace:
            os.write(2, b"\nacktr: stopped at once; resume goes on from the last checkpoint, if there is one\n")
            os._exit(130)
        if not received:
            received.append(time.monotonic())
            reporter.message("stopping after this update; once more stops at once, without saving")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
