"""Gymnasium's MuJoCo environments observed as pictures, drawn off-screen.

After Wu et al. 2017, whose code learns continuous control from 42x42 RGB pictures of the current and the previous step.

Drawing costs more than the physics, and without a GPU nearly all of it is work that a picture this small does not
show: shadows and reflections, and multisampling on software rasterisers. The first two are left out; for the third,
pictures are drawn at twice the size and each two by two pixels are averaged.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from acktr.envs.renderers import Renderer
from acktr.errors import UserError

_SUPERSAMPLING = 2
_FILM_SIZE = 480
_ROUNDNESS = 12, 6, 2  # slices and stacks of spheres and cylinders, rectangles of a box's side
_FLOOR_TILES = 10  # from the middle of a floor to its edge
_MAX_GEOMS = 1000
_CLOSER: dict[str, dict[str, Any]] = {
    # gymnasium's view of the whole arena leaves the target half a pixel
    "Reacher": {"lookat": np.array([0.0, 0.0, 0.01]), "distance": 0.57, "azimuth": 90.0, "elevation": -90.0},
}
"""Views from a nearer point than gymnasium's, by the id without its version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """How an environment is seen.

    Attributes:
        size: height and width of a picture.
        frame_stack: pictures in one observation, of successive steps.
    """

    size: int = 42
    frame_stack: int = 2


class PixelFactory:
    """Makes environments that observe pictures; those made in one process share an OpenGL context.

    It can be sent to another process, where a context of its own is made at the first picture.

    Args:
        factory: makes one environment of gymnasium's MuJoCo family.
        pixels: how it is to be seen.
        renderer: what draws.
    """

    def __init__(self, factory: Callable[[], gymnasium.Env[Any, Any]], *, pixels: Pixels, renderer: Renderer) -> None:
        self.factory = factory
        self.pixels = pixels
        self.renderer = renderer
        self._context = _SharedContext(renderer.name, pixels.size * _SUPERSAMPLING)

    def __call__(self) -> "PixelObservation":
        """Make one environment.

        Raises:
            UserError: what the factory makes is no MuJoCo environment of gymnasium's kind.
        """
        env = self.factory()
        if not _is_mujoco(env.unwrapped):
            name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
            env.close()
            raise UserError(
                f"pixels are for gymnasium's MuJoCo environments such as HalfCheetah-v5; '{name}' is none: leave them "
                "off"
            )
        return PixelObservation(env, pixels=self.pixels, context=self._context)

    def protocol(self, env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
        """What is seen, in plain values.

        Args:
            env: one that this factory made.
        """
        camera = _camera(env.unwrapped)
        view = "closer than gymnasium's" if _stem(env.unwrapped) in _CLOSER else "gymnasium's"
        if camera.fixedcamid >= 0:
            world: Any = env.unwrapped
            view = str(world.model.camera(camera.fixedcamid).name or camera.fixedcamid)
        size = self.pixels.size
        return {
            "pixels": f"{size}x{size} RGB, {self.pixels.frame_stack} frames, without shadows and reflections",
            "camera": view,
            "renderer": self.renderer.name,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the context behind."""
        return _factory, (self.factory, self.pixels, self.renderer)


class PixelObservation(gymnasium.Wrapper[NDArray[np.uint8], Any, Any, Any]):
    """A MuJoCo environment whose observations are its last pictures.

    An observation is (3 * frame_stack, size, size) uint8: red, green and blue of the oldest picture first, of the
    current one last. A reset fills it with the first picture. `render` gives a picture of the environment's own size,
    in full quality.

    Args:
        env: of gymnasium's MuJoCo family.
        pixels: how it is seen.
        context: of the pictures.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, pixels: Pixels, context: "_SharedContext") -> None:
        super().__init__(env)
        self.observation_space = Box(0, 255, (3 * pixels.frame_stack, pixels.size, pixels.size), np.uint8)
        self._pixels = pixels
        self._context: _SharedContext | None = context
        self._painter: _Painter | None = None
        self._film: tuple[_SharedContext, _Painter] | None = None
        self._frames: list[NDArray[np.uint8]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode."""
        _, info = self.env.reset(seed=seed, options=options)
        self._frames = [self._picture()] * self._pixels.frame_stack
        return np.concatenate(self._frames), info

    def step(self, action: Any) -> tuple[NDArray[np.uint8], Any, bool, bool, dict[str, Any]]:
        """Act."""
        _, reward, terminated, truncated, info = self.env.step(action)
        self._frames = [*self._frames[1:], self._picture()]
        return np.concatenate(self._frames), reward, terminated, truncated, info

    def render(self) -> Any:
        """A picture (H, W, 3) uint8 for people."""
        if self._film is None:
            if self._context is None:
                raise UserError("the environment is closed")
            world: Any = self.unwrapped
            size = max(world.width or _FILM_SIZE, world.height or _FILM_SIZE)
            context = _SharedContext(self._context.renderer, size)
            self._film = context, _Painter(world, context, size, plain=False)
        return self._film[1].picture()

    def close(self) -> None:
        """Free the environment and what drew it."""
        if self._context is None:
            return
        if self._painter is not None:
            self._painter.close()
        if self._film is not None:
            self._film[1].close()
        self._context = self._painter = self._film = None
        self.env.close()

    def _picture(self) -> NDArray[np.uint8]:
        """The environment as it stands, (3, size, size) uint8."""
        if self._painter is None:
            if self._context is None:
                raise UserError("the environment is closed")
            self._painter = _Painter(self.unwrapped, self._context, self._pixels.size * _SUPERSAMPLING, plain=True)
        # planes of two by two pixels in 16 bits: sums of four bytes, rounded
        fine = self._painter.picture().transpose(2, 0, 1).astype(np.uint16)
        rows = fine[:, ::2] + fine[:, 1::2]
        return ((rows[:, :, ::2] + rows[:, :, 1::2] + 2) >> 2).astype(np.uint8)


class _SharedContext:
    """An OpenGL context for several painters, made with the first and freed with the last of them."""

    def __init__(self, renderer: str, size: int) -> None:
        self.renderer = renderer
        self._size = size
        self._users = 0
        self._context: Any = None  # MuJoCo's contexts are untyped

    def join(self) -> None:
        """Take part in it; it is current afterwards."""
        if self._context is None:
            # llvmpipe's own threads wait for each other longer than pictures this small take
            os.environ.setdefault("LP_NUM_THREADS", "0")
            self._context = importlib.import_module(f"mujoco.{self.renderer}").GLContext(self._size, self._size)
        self._users += 1
        self.make_current()

    def make_current(self) -> None:
        """Direct OpenGL here; another context may have come in between."""
        self._context.make_current()

    def leave(self) -> None:
        """Free it with its last user."""
        self._users -= 1
        if self._users == 0:
            self._context.free()
            self._context = None


class _Painter:
    """Draws one environment.

    Args:
        world: the innermost environment.
        context: where it is drawn.
        size: of the picture, height and width.
        plain: without shadows and reflections.
    """

    def __init__(self, world: Any, context: _SharedContext, size: int, *, plain: bool) -> None:
        import mujoco

        self._mujoco: Any = mujoco
        self._world = world
        self._shared = context
        self._rectangle = mujoco.MjrRect(0, 0, size, size)
        self._camera = _camera(world)
        self._options = mujoco.MjvOption()
        self._perturbation = mujoco.MjvPerturb()
        self._scene = mujoco.MjvScene(world.model, _MAX_GEOMS)
        context.join()
        self._context: Any = self._make_context(size, plain=plain)
        if plain:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._pixels = np.zeros((size, size, 3), dtype=np.uint8)

    def picture(self) -> NDArray[np.uint8]:
        """The environment as it stands, (size, size, 3) uint8; the array is written into by the next call."""
        mujoco = self._mujoco
        self._shared.make_current()
        mujoco.mjv_updateScene(
            self._world.model,
            self._world.data,
            self._options,
            self._perturbation,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)  # others draw in this OpenGL context
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._context)
        return self._pixels[::-1]

    def close(self) -> None:
        """Free what was drawn with."""
        self._shared.make_current()
        self._context.free()
        self._shared.leave()

    def _make_context(self, size: int, *, plain: bool) -> Any:
        """Buffers of the picture's size, and floors of few tiles; the model, which says others, is left as it was."""
        mujoco, model = self._mujoco, self._world.model
        vis, quality = model.vis.global_, model.vis.quality
        before = vis.offwidth, vis.offheight, quality.offsamples, quality.shadowsize
        roundness = quality.numslices, quality.numstacks, quality.numquads
        floors = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)
        spacing = model.geom_size[floors, 2].copy()
        vis.offwidth, vis.offheight = size, size
        if plain:
            quality.offsamples = quality.shadowsize = 0
            quality.numslices, quality.numstacks, quality.numquads = _ROUNDNESS
            # tiles finer than what is lit by one lamp cost more than all else: Hopper's floor has 40,000
            model.geom_size[floors, 2] = np.maximum(spacing, model.geom_size[floors, :2].max(axis=1) / _FLOOR_TILES)
        try:
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        finally:
            vis.offwidth, vis.offheight, quality.offsamples, quality.shadowsize = before
            quality.numslices, quality.numstacks, quality.numquads = roundness
            model.geom_size[floors, 2] = spacing
        return context


def _factory(factory: Callable[[], gymnasium.Env[Any, Any]], pixels: Pixels, renderer: Renderer) -> PixelFactory:
    return PixelFactory(factory, pixels=pixels, renderer=renderer)


def _is_mujoco(world: object) -> bool:
    import mujoco

    return (
        isinstance(getattr(world, "model", None), mujoco.MjModel)
        and isinstance(getattr(world, "data", None), mujoco.MjData)
        and hasattr(world, "mujoco_renderer")
    )


def _stem(world: Any) -> str:
    """The id that an environment was made by, without its version; empty where it has none."""
    return "" if world.spec is None else str(world.spec.id).rpartition("-v")[0]


def _camera(world: Any) -> Any:
    """The camera that follows the body where the model has one, else the environment's default view.

    That view looks at the middle of the geometries. It is taken from the model's initial state, so that it does not
    depend on the state in which the first picture was drawn.
    """
    import mujoco

    renderer, model = world.mujoco_renderer, world.model
    camera = mujoco.MjvCamera()
    track = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    chosen = renderer.camera_id if renderer.camera_id not in (None, -1) else track
    if chosen != -1:
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = chosen
        return camera
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = np.median(data.geom_xpos, axis=0)
    camera.distance = model.stat.extent
    for name, value in {**(renderer.default_cam_config or {}), **_CLOSER.get(_stem(world), {})}.items():
        if isinstance(value, np.ndarray):
            getattr(camera, name)[:] = value
        else:
            setattr(camera, name, value)
    return camera
