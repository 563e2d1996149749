"""Atari through ale-py's C++ vector emulator, behind the ids that gymnasium registers.

Two protocols are one flag apart. `*NoFrameskip-v4` ids mean the classic one of Mnih et al. 2015 (no sticky actions;
a lost life may end the learning episode), `ALE/*-v5` ids that of Machado et al. 2018 (sticky actions with probability
0.25, no life signal). Both skip 4 frames, take the maximum of the last two, in grey at 84x84, and stack 4.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ale_py
import ale_py.vector_env
import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from acktr.envs.cpus import usable_cpus
from acktr.envs.episodes import EpisodeAccounting
from acktr.envs.vector import Step, VectorEnvironment, checked_seeds
from acktr.errors import UserError

FRAME_SKIP = 4
SCREEN_SIZE = (210, 160)
FRAME_STACK = 4
FRAME_SIZE = 84

# The emulator's seeds are C ints, and -1 means "unseeded" to it.
_SEED_RANGE = 2**31

_UNDERSTOOD = {"game", "repeat_action_probability", "full_action_space", "frameskip", "max_num_frames_per_episode"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AtariSpec:
    """What an Atari id stands for.

    Attributes:
        id: the id as registered.
        game: the ROM's name, in snake case.
        repeat_action_probability: of sticky actions, per frame.
        full_action_space: all 18 actions instead of those that the game uses.
        max_num_frames_per_episode: emulator frames after which an episode is truncated.
    """

    id: str
    game: str
    repeat_action_probability: float
    full_action_space: bool
    max_num_frames_per_episode: int


def atari_spec(spec: gymnasium.envs.registration.EnvSpec) -> AtariSpec:
    """Read what `make_atari` needs from a registered id.

    Args:
        spec: of an id whose entry point is ale-py's.

    Raises:
        UserError: an id whose frame skip is random (`Breakout-v4`), a skip of 1 with sticky actions
            (`BreakoutNoFrameskip-v0`), or registered with settings that the vector emulator does not have.
    """
    settings = dict(spec.kwargs)
    skip = settings.get("frameskip", FRAME_SKIP)
    sticky = float(settings.get("repeat_action_probability", 0.25))
    # An id of skip 1 says "the agent's wrapper skips"; that wrapper is this module. No other skip is built on top.
    if not (skip == FRAME_SKIP or (skip == 1 and sticky == 0.0)):
        raise UserError(
            f"'{spec.id}' is a legacy id (frame skip {skip}, sticky {sticky:g}) that no published score uses; "
            f"use {' or '.join(suggested_ids(spec.id)) or 'a *NoFrameskip-v4 or ALE/*-v5 id'}"
        )
    if foreign := sorted(name for name in set(settings) - _UNDERSTOOD if settings[name] is not None):
        raise UserError(
            f"'{spec.id}' is registered with {', '.join(foreign)}, which the vector emulator does not have; "
            "pass a factory that makes the environment instead of the id"
        )
    return AtariSpec(
        id=spec.id,
        game=str(settings["game"]),
        repeat_action_probability=sticky,
        full_action_space=bool(settings.get("full_action_space", False)),
        max_num_frames_per_episode=int(settings.get("max_num_frames_per_episode", 108_000)),
    )


def suggested_ids(name: str) -> list[str]:
    """Return the two ids under which the game named in `name` is understood; empty if no game is named in it.

    Args:
        name: anything that holds a game's name: `Breakout`, `breakout-v4`, `BreakoutDeterministic-v4`, `ms_pacman`.
    """
    text = re.sub(r"^ale/", "", name.strip(), flags=re.IGNORECASE)
    text = re.sub(r"-v\d+$", "", text, flags=re.IGNORECASE)
    text = re.sub(r"(-ram)?(-?NoFrameskip|-?Deterministic)?$", "", text, flags=re.IGNORECASE)
    wanted = re.sub(r"[^a-z0-9]", "", text.lower())
    ids = [id for id in gymnasium.registry if id.endswith("NoFrameskip-v4") or re.fullmatch(r"ALE/\w+-v5", id)]
    games = {id: re.sub(r"^ale/|noframeskip-v4$|-v5$", "", id.lower()) for id in ids}
    return sorted((id for id in ids if games[id] == wanted), key=lambda id: id.startswith("ALE/"))


def make_atari(
    spec: AtariSpec,
    num_envs: int,
    *,
    terminal_on_life_loss: bool = False,
    fire_after_life_loss: bool = False,
    noop_max: int = 30,
    num_threads: int = 0,
    autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    screen: bool = False,
) -> "AtariEnvironment":
    """Build the emulator for `num_envs` games.

    Args:
        spec: from `atari_spec`.
        num_envs: N.
        terminal_on_life_loss: set `Step.terminals` where a life is lost. The episode and its score go on.
        fire_after_life_loss: press FIRE in place of the policy's action in the step after a lost life, where the game
            has FIRE, and mark that row invalid. Without it a policy that never fires stands still in Breakout.
        noop_max: a game starts with fewer than this many single-frame no-ops.
        num_threads: emulator threads; 0 takes the cores this process may use, at most `num_envs`.
        autoreset_mode: NEXT_STEP or SAME_STEP.
        screen: observe the whole colour screen, (1, 210, 160, 3), for filming; with equal seeds and actions the games
            are those of the policy's own observations.

    Raises:
        UserError: DISABLED, which the emulator does not offer.
    """
    if autoreset_mode is AutoresetMode.DISABLED:
        raise UserError(f"'{spec.id}': the Atari emulator has no DISABLED autoreset mode; use NEXT_STEP or SAME_STEP")
    emulator = _IsolatedEmulator(
        spec.game,
        num_envs,
        repeat_action_probability=spec.repeat_action_probability,
        full_action_space=spec.full_action_space,
        max_num_frames_per_episode=spec.max_num_frames_per_episode,
        frameskip=FRAME_SKIP,
        stack_num=1 if screen else FRAME_STACK,
        img_height=SCREEN_SIZE[0] if screen else FRAME_SIZE,
        img_width=SCREEN_SIZE[1] if screen else FRAME_SIZE,
        grayscale=not screen,
        maxpool=True,
        noop_max=noop_max,
        use_fire_reset=True,
        # Clipped rewards cannot be unclipped, and the emulator's own life options reset the game at a lost life or
        # announce game over there: scores, lives and rewards are kept raw here.
        reward_clipping=False,
        episodic_life=False,
        life_loss_info=False,
        num_threads=num_threads or min(num_envs, usable_cpus()),
        autoreset_mode=autoreset_mode,
    )
    return AtariEnvironment(
        emulator,
        spec=spec,
        terminal_on_life_loss=terminal_on_life_loss,
        fire_after_life_loss=fire_after_life_loss,
        noop_max=noop_max,
    )


class _IsolatedEmulator(ale_py.vector_env.AtariVectorEnv):
    """The emulator with metadata of its own.

    It writes its autoreset mode into `self.metadata`, which is the dictionary of the class `gymnasium.vector.VectorEnv`
    unless the instance has one: every other vector environment without metadata would then report that mode.
    """

    def __init__(self, game: str, num_envs: int, **options: Any) -> None:
        self.metadata = {}
        super().__init__(game, num_envs, **options)


class AtariEnvironment(VectorEnvironment):
    """N games in the C++ emulator: uint8 (N, 4, 84, 84) observations, raw rewards, own life and FIRE rules.

    Life loss: `lives` fell, is still above zero, and the game is not over. The guard keeps Atlantis, BankHeist and
    WizardOfWor right, where lives fall to zero while the game goes on.
    """

    def __init__(
        self,
        emulator: ale_py.vector_env.AtariVectorEnv,
        *,
        spec: AtariSpec,
        terminal_on_life_loss: bool,
        fire_after_life_loss: bool,
        noop_max: int,
    ) -> None:
        actions = list(emulator.ale.get_action_set())
        has_fire = ale_py.Action.FIRE in actions
        self.id = spec.id
        self.num_envs = emulator.num_envs
        self.observation_space = emulator.single_observation_space
        self.source_observation_space = self.observation_space
        self.action_space = Discrete(len(actions))
        self._emulator = emulator
        self._closed = False
        self._terminal_on_life_loss = terminal_on_life_loss
        self._fire = actions.index(ale_py.Action.FIRE) if has_fire and fire_after_life_loss else None
        self._next_step = emulator.autoreset_mode is AutoresetMode.NEXT_STEP
        self._accounting = EpisodeAccounting(self.num_envs)
        self._lives = np.zeros(self.num_envs, dtype=np.int32)
        self._dummy_next = np.zeros(self.num_envs, dtype=np.bool_)
        self._fire_next = np.zeros(self.num_envs, dtype=np.bool_)
        self.protocol = {
            "id": spec.id,
            "family": "atari",
            "game": spec.game,
            "autoreset_mode": emulator.autoreset_mode.value,
            "repeat_action_probability": spec.repeat_action_probability,
            "noop_max": noop_max,
            "fire_at_reset": has_fire,
            "fire_after_life_loss": self._fire is not None,
            "terminal_on_life_loss": terminal_on_life_loss,
            "frame_skip": FRAME_SKIP,
            "frame_max_pool": 2,
            "frame_stack": FRAME_STACK,
            "frame_size": [FRAME_SIZE, FRAME_SIZE],
            "action_set": "full" if spec.full_action_space else "minimal",
            "num_actions": len(actions),
            "max_num_frames_per_episode": spec.max_num_frames_per_episode,
            "reward": "raw",
        }

    def reset(self, seeds: Sequence[int] | None) -> NDArray[Any]:
        """See the base class. Seeds are taken modulo 2^31, the emulator's range.

        A seeded reset costs about 50 ms per environment and thread, an unseeded one a few milliseconds.
        """
        emulator_seeds = None
        if seeds is not None:
            emulator_seeds = np.array([seed % _SEED_RANGE for seed in checked_seeds(seeds, self.num_envs)], np.int64)
        observations, info = self._emulator.reset(seed=emulator_seeds)
        self._lives = np.asarray(info["lives"])
        self._dummy_next = np.zeros(self.num_envs, dtype=np.bool_)
        self._fire_next = np.zeros(self.num_envs, dtype=np.bool_)
        self._accounting.clear()
        first: NDArray[Any] = observations
        return first

    def step(self, actions: NDArray[Any]) -> Step:
        """See the base class."""
        chosen = np.asarray(actions, dtype=np.int64)
        forced = self._fire_next
        if self._fire is not None:
            chosen = np.where(forced, self._fire, chosen)
        observations, raw_rewards, terminated, truncated, info = self._emulator.step(chosen)
        real = ~self._dummy_next
        terminated, truncated = terminated & real, truncated & real
        done = terminated | truncated
        # In SAME_STEP the lives of a finished row are the new game's, in NEXT_STEP those of its dummy row are: both
        # are masked below, and both are the right value to compare the following step with.
        lives = np.asarray(info["lives"])
        life_lost = real & ~done & (lives < self._lives) & (lives > 0)
        self._lives = lives

        rewards = np.where(real, raw_rewards, 0).astype(np.float64)
        truncations = truncated & ~terminated
        final_observations = None
        if not self._next_step and truncations.any():
            # `final_obs` comes without a mask: rows that did not end hold the pixels of some earlier end.
            final_observations = np.zeros_like(observations)
            final_observations[truncations] = info["final_obs"][truncations]
        episodes = self._accounting.update(rewards=rewards, real=real, terminated=terminated, truncated=truncated)
        self._dummy_next = done if self._next_step else np.zeros_like(done)
        self._fire_next = life_lost if self._fire is not None else np.zeros_like(life_lost)
        return Step(
            observations=observations,
            rewards=rewards,
            terminals=terminated | life_lost if self._terminal_on_life_loss else terminated,
            truncations=truncations,
            valid=real & ~forced,
            final_observations=final_observations,
            episode_returns=episodes.returns,
            episode_lengths=episodes.lengths,
            episode_envs=episodes.envs,
            episode_truncated=episodes.truncated,
        )

    def close(self) -> None:
        """See the base class. The emulator's threads end with the last reference to it."""
        if not self._closed:
            self._closed = True
            self._emulator.close()
