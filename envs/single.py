"""Making one environment from its registration. Imports gymnasium alone: worker processes start with it."""

import importlib.util
import os
import warnings
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from acktr.errors import UserError


def make_single(spec: EnvSpec, *, render: bool = False) -> "gymnasium.Env[object, object]":
    """Build one environment, without the checker that costs a Python call on every step.

    Args:
        spec: its registration.
        render: with render mode "rgb_array", and a camera that follows the body where a MuJoCo model has one.

    Raises:
        UserError: a dependency is missing or the version is gone, with gymnasium's advice.
    """
    point = spec.entry_point
    module = point.partition(":")[0] if isinstance(point, str) else getattr(point, "__module__", "")
    is_mujoco = module.startswith("gymnasium.envs.mujoco")
    if is_mujoco and importlib.util.find_spec("mujoco") is not None:
        _hear_mujoco()
    try:
        if render:
            own_camera = any(name in spec.kwargs for name in ("camera_name", "camera_id"))
            # without its name gymnasium 1.4 leaves this camera where it is, and the body runs out of the picture
            follow: dict[str, Any] = {"camera_name": "track"} if is_mujoco and not own_camera else {}
            with warnings.catch_warnings():  # what it means comes as an error, below or from the first picture
                warnings.filterwarnings("ignore", message=".*render_mode='rgb_array' that is not in")
                return gymnasium.make(spec, disable_env_checker=True, render_mode="rgb_array", **follow)
        return gymnasium.make(spec, disable_env_checker=True)  # an environment of one's own may know no render_mode
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        advice = one_line(error)
        if render and isinstance(error, TypeError) and "'render_mode'" in advice:
            raise UserError(
                f"'{spec.id}' gives no picture: its class takes no render_mode; give it one, with 'rgb_array' in "
                "metadata['render_modes'] and a method render that returns the picture"
            ) from error
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if "pip install" not in advice and missing:
            advice += f"; install the package that holds {missing}"
        raise UserError(f"environment '{spec.id}' cannot be made: {advice}") from error


def _hear_mujoco() -> None:
    """Take MuJoCo's warnings as Python's, each told once; its own way is to print those of every environment.

    A handler of the caller's own stays.

    Raises:
        UserError: MuJoCo cannot be loaded, as with a MUJOCO_GL whose library is missing.
    """
    try:
        import mujoco
    except Exception as error:  # its bindings of OpenGL have exceptions of all kinds
        backend = os.environ.get("MUJOCO_GL")
        cure = f"MUJOCO_GL is '{backend}': install its library or unset it" if backend else "install it anew"
        raise UserError(f"mujoco cannot be loaded: {type(error).__name__}: {one_line(error)}; {cure}") from error

    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


def _warn(message: str) -> None:
    if "deprecated" not in message:  # in the models that gymnasium ships, which no user of theirs can mend
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


def one_line(error: BaseException) -> str:
    """Return an error's message with line breaks taken out."""
    return " ".join(str(error).split())


def blame(error: BaseException) -> str:
    """Return what an environment's own code raised, and where, in one line."""
    where = ""
    trace = error.__traceback__
    while trace is not None:
        where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    text = one_line(error)
    return f"{type(error).__name__}{f': {text[:300]}' if text else ''}{where}"
