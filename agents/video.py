"""A film of a policy at play, with its raw score."""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from numpy.typing import NDArray

from acktr.agents.observations import to_tensors
from acktr.agents.policy import ActorCritic
from acktr.agents.runs import pixels_of
from acktr.agents.settings import Settings
from acktr.envs.batches import ObservationBatch
from acktr.envs.make import family, make_screen, make_vec
from acktr.envs.vector import VectorEnvironment
from acktr.errors import UserError

_GIF_FPS = 50
_ATARI_FPS = 15  # 60 emulated frames a second, four to a decision
_SMALLEST_SIDE = 400
_MOST_FRAMES = 30_000
_SUFFIXES = (".mp4", ".gif")


@torch.no_grad()
def record(
    policy: ActorCritic,
    settings: Settings,
    output: Path,
    *,
    episodes: int,
    deterministic: bool,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Film full games.

    On Atari a second emulator that observes the whole colour screen plays the same games beside the policy's: equal
    seeds and actions give equal games. Elsewhere the environment renders itself.

    Args:
        policy: on `device`.
        settings: of the run.
        output: the video, .mp4 or .gif.
        episodes: games to film.
        deterministic: take the most probable action instead of a draw.
        seed: of the games and of the draws.
        device: where the policy is.

    Returns:
        `output`, `frames`, `fps`, and the raw `returns` of the games.

    Raises:
        UserError: the environment cannot render, `output` is neither .mp4 nor .gif, or it cannot be written.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory, but looks for a display and complains
    if output.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{output}: films are written as {' or '.join(_SUFFIXES)}; give such a path")
    if not output.parent.is_dir():
        raise UserError(f"{output} cannot be written: there is no folder {output.parent}; make it or give another path")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise UserError(f"{output} cannot be written: no permission; give another path")
    atari = family(settings.env) == "atari"
    if (
        not settings.pixels
        and sys.platform == "linux"
        and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    ):
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's own choice, GLFW, needs a display
    environment, screen = _pair(settings, atari=atari)
    fps = _ATARI_FPS if atari else environment.render_fps
    generator = torch.Generator(device).manual_seed(seed)
    returns: list[float] = []
    frames = 0
    try:
        observations = environment.reset([seed])
        picture = _screen(screen.reset([seed])) if screen is not None else _first_picture(environment)
        every = _thinning(output, fps)
        with closing(_writer(output, fps / every)) as writer:
            while len(returns) < episodes and frames < _MOST_FRAMES:
                if frames % every == 0:
                    writer.append_data(_enlarge(picture))
                frames += 1
                actions = policy.act(to_tensors(observations, device), generator=generator, deterministic=deterministic)
                host_actions = actions.cpu().numpy()
                step = environment.step(host_actions)
                picture = environment.render() if screen is None else _screen(screen.step(host_actions).observations)
                returns.extend(step.episode_returns.tolist())
                observations = step.observations
            writer.append_data(_enlarge(picture))
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}; give another path") from error
    finally:
        environment.close()
        if screen is not None:
            screen.close()
    return {"output": str(output), "frames": frames, "fps": fps, "returns": returns}


def _screen(observations: ObservationBatch) -> NDArray[np.uint8]:
    assert isinstance(observations, np.ndarray)  # Atari's, which are no Dict
    picture: NDArray[np.uint8] = observations[0, 0]
    return picture


def _first_picture(environment: VectorEnvironment) -> NDArray[np.uint8]:
    try:
        return environment.render()
    except UserError:
        raise
    except Exception as error:  # each renderer has exceptions of its own
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"'{environment.id}' cannot be drawn: {reason}; MuJoCo without a display takes MUJOCO_GL=egl (libegl1 on "
            "Debian) or osmesa"
        ) from error


def _pair(settings: Settings, *, atari: bool) -> tuple[VectorEnvironment, VectorEnvironment | None]:
    environment = make_vec(
        settings.env,
        1,
        fire_after_life_loss=settings.fire_after_life_loss,
        noop_max=settings.noop_max,
        render=not atari,
        pixels=pixels_of(settings),
    )
    if not atari:
        return environment, None
    screen = make_screen(settings.env, fire_after_life_loss=settings.fire_after_life_loss, noop_max=settings.noop_max)
    return environment, screen


def _enlarge(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat pixels until the shorter side is large enough to see, and even, which video codecs want."""
    factor = max(1, -(-_SMALLEST_SIDE // min(picture.shape[:2])))
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return large[: large.shape[0] // 2 * 2, : large.shape[1] // 2 * 2]


def _thinning(output: Path, fps: int) -> int:
    """Every how many pictures are kept: viewers slow GIFs down that change more than fifty times a second."""
    return max(1, -(-fps // _GIF_FPS)) if output.suffix.lower() == ".gif" else 1


def _writer(output: Path, fps: float) -> Any:  # imageio's writers are untyped
    if output.suffix.lower() == ".gif":
        # milliseconds a picture, which GIFs keep in hundredths of a second; repeated for ever
        return imageio.get_writer(output, duration=round(100 / fps) * 10, loop=0)
    return imageio.get_writer(output, fps=fps, macro_block_size=2, quality=8)
