"""Looking up environment ids, and the family that an id belongs to. Imports no torch."""

import difflib
import importlib

import gymnasium
from gymnasium.envs.registration import EnvSpec

from acktr.envs.atari import suggested_ids
from acktr.envs.batches import leaf_spaces
from acktr.envs.single import blame, make_single, one_line
from acktr.envs.spaces import is_image
from acktr.errors import UserError

_FAMILY_BY_MODULE = {
    "ale_py": "atari",
    "gymnasium.envs.mujoco": "mujoco",
    "gymnasium_robotics": "mujoco",
    "gymnasium.envs.classic_control": "classic-control",
    "gymnasium.envs.phys2d": "classic-control",
    "gymnasium.envs.box2d": "box2d",
    "gymnasium.envs.toy_text": "vector",
    "gymnasium.envs.tabular": "vector",
}


def find_spec(env_id: str) -> EnvSpec:
    """Return the registration of an id, or of `module:id` after importing the module.

    Raises:
        UserError: no such id, with the nearest ones; or the module cannot be imported.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
            cure = (
                "name the folder of its file in PYTHONPATH, or install it" if missing else "install or mend the module"
            )
            raise UserError(f"environment '{env_id}': {one_line(error)}; {cure}") from error
        except Exception as error:  # a name that is no module's, or the module's own code
            raise UserError(f"environment '{env_id}': importing {module} raised {blame(error)}; mend it") from error
    if name not in gymnasium.registry:
        raise UserError(f"no environment is called '{env_id}'{_nearest(name)}")
    return gymnasium.registry[name]


def family(env_id: str) -> str:
    """Return the family of an id, which names its preset.

    Known entry points give it without building anything: "atari", "mujoco", "classic-control", "box2d". Other ids
    are told apart by the observations of one environment, built and closed: "image" or "vector". Box2D's CarRacing,
    whose observations are images, is "image".

    Raises:
        UserError: no such id, with the nearest ones; or it is of no known kind and cannot be built.
    """
    spec = find_spec(env_id)
    point = spec.entry_point if spec.entry_point is not None else spec.vector_entry_point
    module = point.partition(":")[0] if isinstance(point, str) else getattr(point, "__module__", "")
    if module == "gymnasium.envs.box2d.car_racing":
        return "image"
    for prefix, name in _FAMILY_BY_MODULE.items():
        if module == prefix or module.startswith(prefix + "."):
            return name
    env = make_single(spec)
    try:
        space = env.observation_space
    except AttributeError as error:
        raise UserError(f"environment '{env_id}': {one_line(error)}; give the class that attribute") from error
    finally:
        env.close()
    return family_of_space(space)


def family_of_space(space: gymnasium.Space[object]) -> str:
    """Return "image" or "vector", by a single environment's observation space; any image in a Dict makes it "image"."""
    return "image" if any(is_image(leaf) for leaf in leaf_spaces(space).values()) else "vector"


def _nearest(name: str) -> str:
    """Return advice on what may have been meant: a game's two ids, newer versions, or similar names."""
    games = suggested_ids(name)
    if games:
        return f"; Atari ids are spelled {' or '.join(games)}"
    by_lower = {id.lower(): id for id in gymnasium.registry}
    if name.lower() in by_lower:
        return f"; nearest: {by_lower[name.lower()]}"
    stem = name.lower().rpartition("-v")[0] or name.lower()
    versions = [id for lower, id in by_lower.items() if lower.rpartition("-v")[0] == stem]
    near = versions[-2:]
    for lower in difflib.get_close_matches(name.lower(), by_lower, n=3) if not near else ():
        near += suggested_ids(by_lower[lower]) or [by_lower[lower]]
    near = list(dict.fromkeys(near))[:3]
    if near:
        return f"; nearest: {', '.join(near)}"
    return "; ids are spelled as in gymnasium, for example CartPole-v1, HalfCheetah-v5 or ALE/Pong-v5"
