"""Which of MuJoCo's ways to draw without a window works here: EGL, OSMesa or GLFW.

Each is tried in a process of its own. PyOpenGL binds itself to one platform when it is first imported, and a broken
driver may end the process: neither must happen to the process that trains.
"""

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass

from acktr.errors import UserError

RENDERERS = ("egl", "osmesa", "glfw")
"""In the order of preference: EGL needs no display and uses a GPU where there is one."""

_OFF = ("disable", "disabled", "off", "false", "0")
_WINDOWED = ("glfw", "glx", "wgl", "cgl", "enable", "enabled", "on", "true", "1")  # MuJoCo's words for its default
_PATIENCE = 60.0  # seconds: a driver on a busy machine may take several to load
_TRIAL = """
import importlib, json, sys
name = sys.argv[1]
try:
    module = importlib.import_module("mujoco." + name)
    import mujoco
    context = module.GLContext(16, 16)
    context.make_current()
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    if not mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100).offFBO:
        raise RuntimeError("no offscreen framebuffer")
    device = ""
    if name != "glfw":
        from OpenGL.GL import GL_RENDERER, glGetString
        device = (glGetString(GL_RENDERER) or b"").decode()
    context.free()
except BaseException as error:
    print(json.dumps({"error": type(error).__name__ + ": " + str(error)}), flush=True)
else:
    print(json.dumps({"device": device}), flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """A working way to draw.

    Attributes:
        name: egl, osmesa or glfw.
        device: what draws, in the driver's words, e.g. "llvmpipe (LLVM 15.0.6, 256 bits)"; empty if it does not say.
        asked: whether the environment variable MUJOCO_GL named it.
    """

    name: str
    device: str
    asked: bool

    def __str__(self) -> str:
        reason = " as MUJOCO_GL says" if self.asked else ""
        return f"{self.name}{reason}{f' ({self.device})' if self.device else ''}"


def find_renderer() -> Renderer:
    """The renderer that MUJOCO_GL names, or without it the first that works.

    Raises:
        UserError: it does not work, or none does; says what to install.
    """
    return _find(os.environ.get("MUJOCO_GL", "").strip().lower())


@functools.cache  # a fact of the machine, and each trial takes a second
def _find(asked: str) -> Renderer:
    if asked in _OFF:
        raise UserError(f"MUJOCO_GL={asked} forbids rendering, which pixel observations need: unset it")
    name = "glfw" if asked in _WINDOWED else asked
    if asked and name not in RENDERERS:
        raise UserError(f"MUJOCO_GL={asked} names no renderer: set it to {', '.join(RENDERERS)}, or unset it")
    failures: list[str] = []
    for candidate in (name,) if asked else RENDERERS:
        found = _try(candidate)
        if "error" not in found:
            return Renderer(name=candidate, device=found["device"], asked=bool(asked))
        failures.append(f"{candidate}: {' '.join(found['error'].split())[:100]}")
    advice = "install libegl1 and libgl1-mesa-dri, or libosmesa6 (the names on Debian and Ubuntu)"
    if asked:
        raise UserError(
            f"MUJOCO_GL={asked} does not work here ({failures[0]}): unset it to try the others, or {advice}"
        )
    raise UserError(f"pixel observations need a renderer, and none works here: {advice} ({'; '.join(failures)})")


def _try(name: str) -> dict[str, str]:
    try:
        result = subprocess.run(
            [sys.executable, "-c", _TRIAL, name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            env={**os.environ, "MUJOCO_GL": name},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_PATIENCE:.0f} seconds"}
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"error": f"its process ended with exit status {result.returncode}"}
    found: dict[str, str] = json.loads(lines[-1])
    return found
