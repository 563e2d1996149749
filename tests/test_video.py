"""Films: the colour screen plays the very game that the policy plays, and the file holds it."""

import contextlib
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from torch import Tensor

from acktr.agents import video
from acktr.agents.settings import Settings
from acktr.agents.video import _enlarge, _first_picture, record
from acktr.envs.make import make_screen, make_vec
from acktr.errors import UserError

CPU = torch.device("cpu")


class Random:
    """Uniform actions, from the generator that it is given."""

    def __init__(self, actions: int) -> None:
        self.actions = actions

    def act(self, observations: Tensor, *, generator: torch.Generator, deterministic: bool) -> Tensor:
        return torch.randint(self.actions, (observations.shape[0],), generator=generator)


def film(env: str, output: Path, *, actions: int, **options: Any) -> dict[str, Any]:
    settings = Settings(env=env, num_threads=1, fire_after_life_loss=options.pop("fire_after_life_loss", False))
    arguments: dict[str, Any] = {"episodes": 1, "deterministic": False, "seed": 0, "device": CPU, **options}
    policy: Any = Random(actions)
    return record(policy, settings, output, **arguments)


def area(source: int) -> np.ndarray[Any, Any]:
    """Matrix (84, source) that averages over areas."""
    edges = np.arange(85) * source / 84
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None) * 84 / source


ROWS, COLUMNS = area(210), area(160)


def grey_and_small(screen: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An area-averaged 84x84 luminance picture of an RGB screen (210, 160, 3)."""
    luminance = screen.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    small: np.ndarray[Any, Any] = ROWS @ luminance @ COLUMNS.T
    return small


@pytest.mark.parametrize("env", ["BreakoutNoFrameskip-v4", "ALE/Pong-v5", "ALE/Breakout-v5"])
def test_the_screen_shows_the_game_that_the_policy_sees(env: str) -> None:
    """Through game ends, lost lives with forced FIRE, random no-ops at the start and sticky actions."""
    fire = env.startswith("Breakout")
    environment = make_vec(env, 1, fire_after_life_loss=fire)
    screen = make_screen(env, fire_after_life_loss=fire, noop_max=30)
    seen, shown = environment.reset([7]), screen.reset([7])
    generator = np.random.default_rng(0)
    rewards, ends = 0.0, 0
    for index in range(900):
        if index % 30 == 0:
            # the maximum of two frames is taken in grey for the policy and in each colour for the screen, which differs
            # where something moved before a coloured ground
            assert (np.abs(seen[0, -1] - grey_and_small(shown[0, 0])) > 2).mean() < 0.01
        actions = generator.integers(0, environment.action_space.n, 1)  # type: ignore[attr-defined]  # a Discrete space
        step, twin = environment.step(actions), screen.step(actions)
        assert step.rewards == twin.rewards
        assert step.terminals == twin.terminals
        assert step.episode_returns.tolist() == twin.episode_returns.tolist()
        rewards += float(np.abs(step.rewards).sum())
        ends += step.episode_returns.size
        seen, shown = step.observations, twin.observations
    environment.close()
    screen.close()
    assert rewards > 0
    assert ends > 0 or "Pong" in env


def test_an_atari_film_holds_the_whole_game_in_colour(tmp_path: Path) -> None:
    result = film("BreakoutNoFrameskip-v4", tmp_path / "game.mp4", actions=4, fire_after_life_loss=True)
    frames = imageio.imread(tmp_path / "game.mp4")
    assert len(frames) == result["frames"] + 1
    assert frames.shape[1:] == (630, 480, 3)
    assert len(result["returns"]) == 1
    bricks = frames[:, 170:290, 30:450].astype(int)
    assert (np.ptp(bricks, axis=-1) > 60).mean() > 0.3, "in colour"
    still_there = (np.ptp(bricks, axis=-1) > 60).mean(axis=(1, 2))
    lost = round((still_there[0] - still_there[-1]) * bricks.shape[1] * bricks.shape[2] / (24 * 18))
    assert lost == result["returns"][0], "every point of such a game is a brick of the lower rows"


def test_an_environment_that_renders_itself_is_filmed_at_its_own_pace(tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    result = film("CartPole-v1", tmp_path / "game.gif", actions=2, episodes=2)
    assert len(imageio.imread(tmp_path / "game.gif")) > 1
    assert len(result["returns"]) == 2
    assert result["fps"] == 50


def test_the_same_seed_films_the_same_game(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        film("BreakoutNoFrameskip-v4", tmp_path / f"{name}.mp4", actions=4, seed=seed, fire_after_life_loss=True)
    a, b, c = (imageio.imread(tmp_path / f"{name}.mp4") for name in "abc")
    assert np.array_equal(a, b)
    assert a.shape != c.shape or not np.array_equal(a, c)


@pytest.mark.parametrize(("fps", "seconds"), [(125, 1 / 40), (60, 1 / 30), (50, 0.02), (30, 0.03), (15, 0.07)])
def test_a_gif_changes_no_faster_than_viewers_play_it(fps: int, seconds: float, tmp_path: Path) -> None:
    """A picture shorter than two hundredths of a second is shown for ten of them by most."""
    every = video._thinning(tmp_path / "game.gif", fps)
    with contextlib.closing(video._writer(tmp_path / "game.gif", fps / every)) as writer:
        for shade in range(0, 250, 25):
            writer.append_data(np.full((8, 8, 3), shade, dtype=np.uint8))
    duration = imageio.immeta(tmp_path / "game.gif")["duration"] / 1000
    assert duration >= 0.02
    assert duration == pytest.approx(seconds, abs=0.0051)
    assert video._thinning(tmp_path / "game.mp4", fps) == 1


def test_a_gif_plays_at_the_pace_of_the_game_and_repeats(tmp_path: Path) -> None:
    film("BreakoutNoFrameskip-v4", tmp_path / "game.gif", actions=4, fire_after_life_loss=True)
    metadata = imageio.immeta(tmp_path / "game.gif")
    assert metadata["duration"] == pytest.approx(1000 / 15, abs=10)
    assert metadata["loop"] == 0


def test_bad_outputs_are_refused_before_anything_is_played(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"written as \.mp4 or \.gif"):
        film("PongNoFrameskip-v4", tmp_path / "game.avi", actions=6)
    with pytest.raises(UserError, match="there is no folder"):
        film("PongNoFrameskip-v4", tmp_path / "absent" / "game.mp4", actions=6)
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_cannot_be_drawn_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = make_vec("CartPole-v1", 1)

    def fail() -> Any:
        raise RuntimeError("an OpenGL platform library has not been loaded")

    monkeypatch.setattr(environment, "render", fail)
    with pytest.raises(UserError, match=r"OpenGL.*MUJOCO_GL=egl"):
        _first_picture(environment)
    environment.close()


@pytest.mark.parametrize("shape", [(210, 160, 3), (480, 480, 3), (25, 33, 3), (401, 501, 3)])
def test_pictures_are_enlarged_by_whole_factors_to_even_sides(shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    large = _enlarge(picture)
    assert min(large.shape[:2]) >= 400
    assert large.shape[0] % 2 == large.shape[1] % 2 == 0
    factor = max(1, -(-400 // min(shape[:2])))
    assert np.array_equal(large[::factor, ::factor][:20, :20], picture[:20, :20])


@pytest.mark.parametrize(("env_id", "follows"), [("HalfCheetah-v5", True), ("Hopper-v4", True), ("Reacher-v5", False)])
def test_the_camera_follows_a_body_that_runs(env_id: str, follows: bool) -> None:
    """HalfCheetah ran out of its own film."""
    environment: Any = make_vec(env_id, 1, render=True)
    camera = environment._env._group.envs[0].unwrapped.mujoco_renderer.camera_id
    environment.close()
    assert (camera != -1) == follows
