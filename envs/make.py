"""The one entry to environments: `make_vec` for an id, a factory or a vector environment."""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from acktr.envs.adaptor import GymnasiumEnvironment
from acktr.envs.atari import atari_spec, make_atari
from acktr.envs.registry import family, family_of_space, find_spec, make_single
from acktr.envs.vector import VectorEnvironment
from acktr.errors import UserError

EnvironmentLike = str | Callable[[], gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any]

__all__ = ["EnvironmentLike", "describe", "family", "make_screen", "make_vec"]


def describe(env: EnvironmentLike) -> tuple[str, str]:
    """Name and family of an id, a factory or a vector environment; a factory is called once and the result closed.

    Raises:
        UserError: no such id, or an object that is none of the three.
    """
    if isinstance(env, str):
        return env, family(env)
    if isinstance(env, VectorEnv):
        return _name(env), family_of_space(env.single_observation_space)
    if isinstance(env, gymnasium.Env) or not callable(env):
        raise _no_environment(env)
    single = env()
    try:
        return _name(single), family_of_space(single.observation_space)
    finally:
        single.close()


def make_vec(
    env: "str | Callable[[], gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any]",
    num_envs: int,
    *,
    terminal_on_life_loss: bool = False,
    fire_after_life_loss: bool = False,
    noop_max: int = 30,
    num_threads: int = 0,
    autoreset_mode: AutoresetMode | None = None,
    render: bool = False,
) -> VectorEnvironment:
    """Make `num_envs` environments that step together.

    Args:
        env: an id that gymnasium knows (or `module:id`), a function that makes one environment anew at every call, or
            a vector environment in any autoreset mode.
        num_envs: N; for a vector environment it must be the number it has.
        terminal_on_life_loss: Atari ids only: a lost life sets `Step.terminals`; the episode and its score go on.
        fire_after_life_loss: Atari ids only: FIRE is pressed after a lost life and that row is invalid.
        noop_max: Atari ids only: a game starts with fewer than this many no-ops.
        num_threads: emulator threads of Atari ids; 0 takes the cores this process may use.
        autoreset_mode: for ids and factories the mode to build with (None: NEXT_STEP); for a vector environment
            None takes what it declares and a value overrides that. The meaning of `Step` is the same in all.
        render: ids other than Atari's only: make them so that `render` gives pictures.

    Raises:
        UserError: an unknown id (with the nearest ones), a missing dependency, spaces that are not understood, a
            number of environments that does not fit, or a life rule where there are no lives.
    """
    if num_envs < 1:
        raise UserError(f"num_envs must be at least 1, got {num_envs}")
    spec = find_spec(env) if isinstance(env, str) else None
    if spec is not None and family(spec.id) == "atari":
        return make_atari(
            atari_spec(spec),
            num_envs,
            terminal_on_life_loss=terminal_on_life_loss,
            fire_after_life_loss=fire_after_life_loss,
            noop_max=noop_max,
            num_threads=num_threads,
            autoreset_mode=autoreset_mode or AutoresetMode.NEXT_STEP,
        )
    name = spec.id if spec is not None else _name(env)
    if terminal_on_life_loss or fire_after_life_loss:
        raise UserError(
            f"terminal_on_life_loss and fire_after_life_loss are for Atari ids such as BreakoutNoFrameskip-v4; "
            f"'{name}' is none: leave them off"
        )
    if isinstance(env, VectorEnv):
        return _adapt_vector_env(env, num_envs, name=name, autoreset_mode=autoreset_mode)
    if isinstance(env, gymnasium.Env) or not (spec is not None or callable(env)):
        raise _no_environment(env)
    factory: Callable[[], gymnasium.Env[Any, Any]] = (
        env if callable(env) else lambda: make_single(find_spec(name), render=render)
    )
    if spec is not None and spec.entry_point is None:
        raise UserError(f"'{name}' exists as a vector environment only; make it and pass the object instead of the id")
    return _make_sync(factory, num_envs, name=name, autoreset_mode=autoreset_mode or AutoresetMode.NEXT_STEP)


def make_screen(env_id: str, *, fire_after_life_loss: bool, noop_max: int) -> VectorEnvironment:
    """One game of an Atari id that observes the whole colour screen, uint8 (1, 1, 210, 160, 3), for filming.

    Stepped with the same seeds and actions beside an environment of `make_vec`, it plays the same game.

    Raises:
        UserError: no such id.
    """
    return make_atari(
        atari_spec(find_spec(env_id)), 1, fire_after_life_loss=fire_after_life_loss, noop_max=noop_max, screen=True
    )


def _adapt_vector_env(
    env: VectorEnv[Any, Any, Any], num_envs: int, *, name: str, autoreset_mode: AutoresetMode | None
) -> VectorEnvironment:
    if env.num_envs != num_envs:
        raise UserError(f"the vector environment '{name}' holds {env.num_envs} environments, not num_envs={num_envs}")
    if type(env.unwrapped).__module__.startswith("ale_py."):
        warnings.warn(
            f"'{name}' is ale-py's own vector environment: by default it clips rewards, so that scores are lost, and "
            "its life options are not understood; pass the id instead",
            stacklevel=3,
        )
    family_name = family_of_space(env.single_observation_space)
    limit = env.spec.max_episode_steps if env.spec is not None else None
    plain = _is_plain(env) and not isinstance(env, VectorWrapper)  # vector wrappers leave no trace in the spec
    return GymnasiumEnvironment(
        env, name=name, family=family_name, autoreset_mode=autoreset_mode, max_episode_steps=limit, own=not plain
    )


def _make_sync(
    factory: Callable[[], gymnasium.Env[Any, Any]], num_envs: int, *, name: str, autoreset_mode: AutoresetMode
) -> VectorEnvironment:
    # One process: for environments that cost less than about a millisecond a step, worker processes are slower. The
    # observations are copied by the adaptor, so a copy here would be a second one.
    envs = SyncVectorEnv([factory] * num_envs, copy=False, autoreset_mode=autoreset_mode)
    if len({id(single) for single in envs.envs}) != num_envs:
        raise UserError(f"the factory '{name}' returned one environment twice; it must make a new one at every call")
    single = envs.envs[0]
    spec = single.spec
    return GymnasiumEnvironment(
        envs,
        name=spec.id if spec is not None else name,
        family=family(spec.id)
        if spec is not None and spec.id in gymnasium.registry
        else family_of_space(single.observation_space),
        max_episode_steps=spec.max_episode_steps if spec is not None else None,
        own=not _is_plain(single),
    )


def _is_plain(env: "gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]") -> bool:
    """Whether making its id anew, here or in another process, gives the same: no other arguments, no wrappers."""
    spec = env.spec
    registered = gymnasium.registry.get(spec.id) if spec is not None else None
    if spec is None or registered is None or spec.additional_wrappers:
        return False
    unlimited = isinstance(env, gymnasium.Env) and env is env.unwrapped and spec.max_episode_steps is not None
    return not unlimited and _what_plays(spec) == _what_plays(registered)


def _what_plays(spec: EnvSpec) -> tuple[object, ...]:
    limit = spec.kwargs.get("max_episode_steps", spec.max_episode_steps)  # of a vector environment in its arguments
    how = ("render_mode", "max_episode_steps", "num_envs", "vectorization_mode")
    return spec.entry_point, limit, {name: value for name, value in spec.kwargs.items() if name not in how}


def _no_environment(env: object) -> UserError:
    if isinstance(env, gymnasium.Env):
        return UserError(
            f"got an environment, '{_name(env)}', where several are needed; pass its id or a function that makes it"
        )
    return UserError(
        f"got {type(env).__name__} for an environment; pass an id, a function that makes one, or a VectorEnv"
    )


def _name(env: object) -> str:
    """Return what to call something that is no id: its spec's id, else the name of its function or class."""
    spec = getattr(env, "spec", None)
    if spec is not None:
        return str(spec.id)
    return str(getattr(env, "__name__", None) or type(getattr(env, "unwrapped", env)).__name__)
