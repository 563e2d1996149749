"""MuJoCo from pixels: what is seen, which renderer draws it, and policies that live on it."""

import subprocess
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from acktr.agents import presets
from acktr.agents.play import evaluate_file, record_file
from acktr.agents.runs import train
from acktr.agents.settings import Settings
from acktr.cli import main
from acktr.envs import renderers
from acktr.envs.make import make_vec
from acktr.envs.mujoco import PixelObservation, Pixels
from acktr.errors import UserError


@pytest.fixture(scope="module")
def renderer() -> renderers.Renderer:
    try:
        return renderers.find_renderer()
    except UserError as error:
        pytest.skip(str(error))


def pictures(observation: Any) -> Any:
    """An observation (3 n, H, W) as n pictures (H, W, 3), in signed integers."""
    return observation.reshape(-1, 3, *observation.shape[1:]).transpose(0, 2, 3, 1).astype(int)


def short(env_id: str, limit: int) -> Any:
    return lambda: gymnasium.wrappers.TimeLimit(gymnasium.make(env_id).unwrapped, limit)


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "Reacher-v5", "HalfCheetah-v5", "Hopper-v5"])
def test_an_observation_is_the_previous_picture_and_the_current_one(env_id: str, renderer: renderers.Renderer) -> None:
    environment = make_vec(env_id, 2, pixels=Pixels())
    assert environment.observation_space == gymnasium.spaces.Box(0, 255, (6, 42, 42), np.uint8)
    assert environment.protocol["renderer"] == renderer.name
    assert "own" not in environment.protocol
    assert environment.protocol["family"] == "mujoco"
    first = environment.reset([0, 1])
    assert first.dtype == np.uint8
    previous, current = pictures(first[0])
    np.testing.assert_array_equal(previous, current)
    assert current.std() > 5  # a picture, not one colour
    second = environment.step(np.full((2, *environment.action_space.shape), 0.5, np.float32)).observations  # type: ignore[misc]
    np.testing.assert_array_equal(pictures(second[0])[0], current)
    assert (pictures(second[0])[1] != current).any()
    environment.close()


def test_the_number_of_pictures_and_their_size_are_settings(renderer: renderers.Renderer) -> None:
    environment = make_vec("InvertedPendulum-v5", 1, pixels=Pixels(size=30, frame_stack=3))
    assert environment.reset([0]).shape == (1, 9, 30, 30)
    environment.close()


def test_reacher_shows_arm_and_target_and_the_pendulum_cart_and_pole(renderer: renderers.Renderer) -> None:
    reacher = make_vec("Reacher-v5", 1, pixels=Pixels())
    picture = pictures(reacher.reset([0])[0])[1]
    red, green, blue = picture.transpose(2, 0, 1)
    target = (red > green + 30) & (red > blue + 20)
    arm = (blue > red + 30) & (red < 60)
    assert target.sum() >= 2
    assert arm.sum() >= 20
    reacher.close()
    pendulum = make_vec("InvertedPendulum-v5", 1, pixels=Pixels())
    red, green, blue = pictures(pendulum.reset([0])[0])[1].transpose(2, 0, 1)
    assert ((red > 40) & (green > 40) & (blue < 30)).sum() >= 20  # the yellow cart
    assert ((blue > 40) & (green > 40) & (red < 30)).sum() >= 15  # the blue-green pole
    pendulum.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_workers_give_the_same_pictures_also_of_the_last_step_before_a_limit(
    mode: AutoresetMode, renderer: renderers.Renderer
) -> None:
    # three environments: those that share an OpenGL context must not draw into each other's picture
    runs = []
    for how in ("sync", "async"):
        environment = make_vec(short("Reacher-v5", 3), 3, pixels=Pixels(), autoreset_mode=mode, vectorization=how)  # type: ignore[arg-type]
        generator = np.random.default_rng(0)
        observations = [environment.reset([3, 4, 5])]
        last = None
        for _ in range(3):
            step = environment.step(generator.uniform(-1, 1, (3, 2)).astype(np.float32))
            observations.append(step.observations)
            last = step.final_observations
        assert step.truncations.all()
        if mode is AutoresetMode.NEXT_STEP:
            last = step.observations
        else:  # the row is already the next episode's
            assert last is not None
            fresh = pictures(step.observations[0])
            np.testing.assert_array_equal(fresh[0], fresh[1])
        np.testing.assert_array_equal(last[:, :3], observations[2][:, 3:])
        assert (last[:, 3:] != last[:, :3]).any()
        environment.close()
        runs.append(np.concatenate([*observations, last]))
    np.testing.assert_array_equal(*runs)


def test_a_picture_depends_on_the_state_alone(renderer: renderers.Renderer) -> None:
    environment = make_vec("InvertedPendulum-v5", 3, pixels=Pixels())
    together = environment.reset([5, 6, 7])
    environment.step(np.ones((3, 1), np.float32))
    np.testing.assert_array_equal(environment.reset([5, 6, 7]), together)
    environment.close()
    for row, seed in enumerate((5, 6, 7)):
        alone = make_vec("InvertedPendulum-v5", 1, pixels=Pixels())
        np.testing.assert_array_equal(alone.reset([seed])[0], together[row])
        alone.close()


def test_drawing_leaves_the_model_as_it_was(renderer: renderers.Renderer) -> None:
    environment = make_vec("Hopper-v5", 1, pixels=Pixels())
    environment.reset([0])
    seen: PixelObservation = environment._env._group.envs[0]  # type: ignore[attr-defined]
    drawn: Any = seen.unwrapped
    plain: Any = gymnasium.make("Hopper-v5").unwrapped
    np.testing.assert_array_equal(drawn.model.geom_size, plain.model.geom_size)
    for name in ("offsamples", "shadowsize", "numslices", "numstacks", "numquads"):
        assert getattr(drawn.model.vis.quality, name) == getattr(plain.model.vis.quality, name)
    assert drawn.model.vis.global_.offwidth == plain.model.vis.global_.offwidth
    before = environment._env.single_observation_space  # type: ignore[attr-defined]
    film = environment.render()
    assert film.shape == (480, 480, 3)
    assert before.shape == (6, 42, 42)
    environment.close()


def test_a_film_in_between_changes_no_observation(renderer: renderers.Renderer) -> None:
    observations = []
    for filmed in (False, True):
        environment = make_vec("Hopper-v5", 1, pixels=Pixels(), render=True)
        environment.reset([0])
        for _ in range(3):
            if filmed:
                environment.render()
            step = environment.step(np.full((1, 3), 0.3, np.float32))
        observations.append(step.observations)
        environment.close()
    np.testing.assert_array_equal(*observations)


@pytest.mark.parametrize("env", ["CartPole-v1", "PongNoFrameskip-v4"])
def test_pixels_of_what_is_not_mujoco_are_a_one_line_error(env: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--env", env, "--pixels"]) == 2
    error = capsys.readouterr().err
    assert f"'{env}' is none" in error
    assert error.count("\n") == 1


def test_pixels_of_a_function_that_makes_something_else_are_refused(renderer: renderers.Renderer) -> None:
    with pytest.raises(UserError, match="'CartPole-v1' is none"):
        make_vec(lambda: gymnasium.make("CartPole-v1"), 1, pixels=Pixels())


class _Trials:
    """`subprocess` as the module under test sees it: only some renderers work."""

    TimeoutExpired = subprocess.TimeoutExpired
    DEVNULL = subprocess.DEVNULL

    def __init__(self, works: tuple[str, ...]) -> None:
        self.works = works

    def run(self, command: list[str], **_: Any) -> Any:
        name = command[-1]
        if name == "egl" and name not in self.works:  # as a driver that brings its process down
            return subprocess.CompletedProcess(command, -11, stdout="", stderr="")
        text = '{"device": ""}' if name in self.works else '{"error": "ImportError: no\\nlibrary"}'
        return subprocess.CompletedProcess(command, 0, stdout=f"noise\n{text}\n", stderr="")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    def choose(*names: str, asked: str = "") -> None:
        monkeypatch.setattr(renderers, "subprocess", _Trials(names))
        monkeypatch.setenv("MUJOCO_GL", asked)
        renderers._find.cache_clear()

    yield choose
    renderers._find.cache_clear()


def test_the_first_renderer_that_works_is_taken(only: Any) -> None:
    only("osmesa", "glfw")
    assert str(renderers.find_renderer()) == "osmesa"
    only("egl", "osmesa")
    assert renderers.find_renderer().name == "egl"


def test_the_users_choice_of_renderer_is_kept_and_said_not_to_work(only: Any) -> None:
    only("egl", "osmesa", asked="osmesa")
    assert str(renderers.find_renderer()) == "osmesa as MUJOCO_GL says"
    only("osmesa", asked="egl")
    with pytest.raises(UserError, match=r"^MUJOCO_GL=egl does not work here \(egl: its process .*unset it"):
        renderers.find_renderer()
    only("egl", asked="cuda")
    with pytest.raises(UserError, match="MUJOCO_GL=cuda names no renderer"):
        renderers.find_renderer()
    only("egl", asked="off")
    with pytest.raises(UserError, match="forbids rendering"):
        renderers.find_renderer()


def test_without_a_renderer_one_line_says_what_to_install(only: Any, capsys: pytest.CaptureFixture[str]) -> None:
    only()
    assert main(["train", "--env", "Hopper-v5", "--pixels"]) == 2
    error = capsys.readouterr().err
    assert "libegl1" in error
    assert "libosmesa6" in error
    assert error.count("\n") == 1


def test_a_real_failure_of_a_renderer_does_not_spoil_the_others(
    renderer: renderers.Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderers, "RENDERERS", ("nonsense", renderer.name))
    renderers._find.cache_clear()
    assert renderers.find_renderer().name == renderer.name
    renderers._find.cache_clear()
    environment = make_vec("InvertedPendulum-v5", 1, pixels=Pixels())
    assert environment.reset([0]).any()
    environment.close()


def test_pixels_choose_their_preset() -> None:
    resolution = presets.resolve({"env": "HalfCheetah-v5", "pixels": True})
    assert resolution.notes == ("preset mujoco-pixels (pixels of HalfCheetah-v5)",)
    assert resolution.settings().network == "small-conv"
    assert presets.resolve({"env": "HalfCheetah-v5", "pixels": False}).values["network"] == "mlp"


def test_the_flag_chooses_the_preset_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--pixels", "--env", "Hopper-v5"], ["--env", "Hopper-v5", "--no-pixels", "--pixels"]):
        with pytest.raises(SystemExit):
            main(["train", *args, "--help"])
        assert "preset mujoco-pixels" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("algorithm", ["acktr", "a2c"])
def test_a_policy_on_pixels_trains_plays_and_is_filmed(
    algorithm: str, tmp_path: Path, renderer: renderers.Renderer, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    chosen = presets.resolve({"env": "InvertedPendulum-v5", "pixels": True, "algorithm": algorithm}).values
    small = {"num_envs": 2, "num_steps": 8, "total_timesteps": 32, "conv_channels": (4, 4), "conv_features": 16}
    train(Settings(**{**chosen, **small, "vectorization": "sync", "num_threads": 1}), run_dir=run)
    assert f"drawn by {renderer.name}" in capsys.readouterr().out
    options: dict[str, Any] = {"deterministic": None, "seed": 0, "device": "cpu"}
    result = evaluate_file(run, episodes=2, num_envs=None, **options)
    assert result["protocol"]["renderer"] == renderer.name
    film = record_file(run, tmp_path / "film.gif", episodes=1, **options)
    again = evaluate_file(run, episodes=2, num_envs=2, **options)
    assert result["returns"] == again["returns"]
    assert film["frames"] > 1
    assert film["returns"][0] >= 1
