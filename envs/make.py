"""The one entry to environments: `make_vec` for an id, a factory or a vector environment."""

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from acktr.envs.adaptor import GymnasiumEnvironment
from acktr.envs.atari import atari_spec, make_atari
from acktr.envs.mujoco import PixelFactory, Pixels
from acktr.envs.registry import family, family_of_space, find_spec
from acktr.envs.renderers import find_renderer
from acktr.envs.single import make_single
from acktr.envs.spaces import adapt_actions, adapt_observations
from acktr.envs.vector import VectorEnvironment
from acktr.envs.vectorization import Vectorization, vectorized
from acktr.errors import UserError

EnvironmentLike = str | Callable[[], gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any]

__all__ = ["EnvironmentLike", "describe", "family", "make_screen", "make_vec"]


def describe(env: EnvironmentLike) -> tuple[str, str]:
    """Name and family of an id, a factory or a vector environment; a factory is called once and the result closed.

    What was registered under an id has its family, wrapped or not, as long as it is observed as vectors; of frames
    nothing but the observations is known.

    Raises:
        UserError: no such id, or an object that is none of the three.
    """
    if isinstance(env, str):
        return env, family(env)
    if isinstance(env, VectorEnv):
        return _name(env), _family_of_object(env, env.single_observation_space)
    if isinstance(env, gymnasium.Env) or not callable(env):
        raise _no_environment(env)
    single = _made(env)
    try:
        return _name(single), _family_of_object(single, single.observation_space)
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
    pixels: Pixels | None = None,
    vectorization: Vectorization = "sync",
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
        render: ids other than Atari's only: make them so that `render` gives pictures; in this process.
        pixels: MuJoCo environments only: observe pictures.
        vectorization: "sync": all in this process; "async": in worker processes; "auto": what is quicker, found by
            measuring both. Both give the same bytes. A function stays in this process under "auto", as the caller may
            look at what it makes. Atari ids and vector environments go their own way.

    Raises:
        UserError: an unknown id (with the nearest ones), a missing dependency, spaces that are not understood, a
            number of environments that does not fit, a life rule where there are no lives, pixels where there is no
            MuJoCo or no renderer, or worker processes that cannot be had.
    """
    if num_envs < 1:
        raise UserError(f"num_envs must be at least 1, got {num_envs}")
    spec = find_spec(env) if isinstance(env, str) else None
    kind = family(spec.id) if spec is not None else None
    if pixels is not None and (isinstance(env, VectorEnv) or kind not in (None, "mujoco")):
        name = spec.id if spec is not None else _name(env)
        raise UserError(
            f"pixels are for MuJoCo environments such as HalfCheetah-v5; '{name}' is "
            f"{'a vector environment' if spec is None else 'none'}: leave them off"
        )
    if spec is not None and kind == "atari":
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
    if spec is not None and spec.entry_point is None:
        raise UserError(f"'{name}' exists as a vector environment only; make it and pass the object instead of the id")
    if render or (spec is None and vectorization == "auto"):
        vectorization = "sync"
    return _make_own(
        env if callable(env) else functools.partial(make_single, find_spec(name), render=render),
        num_envs,
        name=name,
        mode=autoreset_mode or AutoresetMode.NEXT_STEP,
        pixels=pixels,
        vectorization=vectorization,
    )


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


def _make_own(
    factory: Callable[[], gymnasium.Env[Any, Any]],
    num_envs: int,
    *,
    name: str,
    mode: AutoresetMode,
    pixels: Pixels | None,
    vectorization: Vectorization,
) -> VectorEnvironment:
    seen: PixelFactory | None = None
    notes: list[str] = []
    if pixels is not None:
        renderer = find_renderer()
        factory = seen = PixelFactory(factory, pixels=pixels, renderer=renderer)
        notes.append(f"pixels: {pixels.size}x{pixels.size} RGB, drawn by {renderer}")
    single = _made(factory)
    try:
        adapt_observations(single.observation_space, env=name)
        adapt_actions(single.action_space, env=name)
        envs, chosen, note = vectorized(factory, single, num_envs, how=vectorization, name=name, mode=mode)
        played = single if seen is None else single.env  # type: ignore[attr-defined]
        spec = played.spec
        environment = GymnasiumEnvironment(
            envs,
            name=spec.id if spec is not None else name,
            family=family(spec.id)
            if spec is not None and spec.id in gymnasium.registry
            else family_of_space(played.observation_space),
            max_episode_steps=spec.max_episode_steps if spec is not None else None,
            own=not _is_plain(played),
        )
        if seen is not None:
            environment.protocol |= seen.protocol(single)
    finally:
        single.close()
    environment.vectorization = chosen
    environment.notes = (*notes, *([note] if note else []), *environment.notes)
    return environment


def _family_of_object(
    env: "gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]", observations: gymnasium.Space[Any]
) -> str:
    by_space = family_of_space(observations)
    if by_space == "image" or env.spec is None or env.spec.id not in gymnasium.registry:
        return by_space
    by_id = family(env.spec.id)
    return by_space if by_id in ("atari", "image") else by_id


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


def _made(factory: Callable[[], object]) -> gymnasium.Env[Any, Any]:
    """What a function makes: one environment, asked for without arguments."""
    name = getattr(factory, "__name__", type(factory).__name__)
    with contextlib.suppress(ValueError):  # some built-in functions tell no signature
        try:
            inspect.signature(factory).bind()
        except TypeError as error:
            raise UserError(
                f"a function that makes an environment is called without arguments; '{name}': {error}; give them by "
                "functools.partial"
            ) from error
    single = factory()
    if isinstance(single, VectorEnv):
        raise UserError(f"'{name}' makes a vector environment; pass what it makes, or a function that makes one game")
    if not isinstance(single, gymnasium.Env):
        raise UserError(f"'{name}' makes {type(single).__name__}, not a gymnasium.Env; let the class derive from it")
    return single


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
