"""Pictures of a scene without a screen: choosing a MuJoCo backend, and RGB with depth in metres."""

from __future__ import annotations

import atexit
import ctypes.util
import os
from typing import Any

import numpy as np

from ..readers.errors import SourceError

_TODO = (
    "install EGL (Debian: apt-get install libegl1 libgl1-mesa-dri libopengl0) "
    "or OSMesa (libosmesa6), or set MUJOCO_GL"
)


def choose_backend() -> str:
    """Set MUJOCO_GL, where the user has not, to what this system has; call before importing mujoco.

    Raises:
        SourceError: neither EGL nor OSMesa is installed, MuJoCo is not, or they do not load.
    """
    # llvmpipe: one thread a process; the processes are what runs in parallel.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    chosen = os.environ.get("MUJOCO_GL")
    if not chosen:
        if ctypes.util.find_library("EGL"):
            chosen = "egl"
        elif ctypes.util.find_library("OSMesa"):
            chosen = "osmesa"
        else:
            raise SourceError("no off-screen OpenGL was found", key="MUJOCO_GL", todo=_TODO)
        os.environ["MUJOCO_GL"] = chosen
    try:
        import mujoco  # noqa: F401
    except ModuleNotFoundError as error:
        raise SourceError(
            f"the package {error.name} is not installed", todo="pip install wristaugment[sim]"
        ) from error
    except Exception as error:  # whatever the OpenGL bindings raise when a library is missing
        found = f"{chosen} did not load: {error}"
        raise SourceError(found, key="MUJOCO_GL", todo=_TODO) from error
    return chosen


class Renderer:
    """Renders the named cameras of one scene after another, in one OpenGL context.

    Args:
        height, width: of the pictures, in pixels.

    Raises:
        SourceError: OpenGL cannot be started.
    """

    def __init__(self, height: int, width: int):
        choose_backend()
        import mujoco  # not before: it reads MUJOCO_GL

        self._mujoco = mujoco
        self._gl: Any = None
        self._context: Any = None
        self._scene: Any = None
        self._model: Any = None
        self.height, self.width = height, width
        try:
            self._gl = mujoco.GLContext(width, height)
            self._gl.make_current()
        except Exception as error:
            found = f"OpenGL did not start: {error}"
            raise SourceError(found, key="MUJOCO_GL", todo=_TODO) from error
        # OSMesa complains when it is freed by an interpreter that is already half gone.
        atexit.register(self.close)

    def load(self, model) -> None:
        """Take another compiled scene.

        Raises:
            SourceError: OpenGL cannot be started.
        """
        mujoco = self._mujoco
        self._free()
        self._model = model
        try:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except mujoco.FatalError as error:  # GLFW without a display gets as far as this
            found = f"OpenGL did not start: {error}"
            raise SourceError(found, key="MUJOCO_GL", todo=_TODO) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model, maxgeom=500)

    def render(self, data, camera: str) -> tuple[np.ndarray, np.ndarray]:
        """The picture [H, W, 3] uint8 and z-depth [H, W] float32 in metres (0 = nothing there)."""
        mujoco, model = self._mujoco, self._model
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(
            model, data, mujoco.MjvOption(), None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        rect = mujoco.MjrRect(0, 0, self.width, self.height)
        rgb = np.empty((self.height, self.width, 3), np.uint8)
        depth = np.empty((self.height, self.width), np.float32)
        mujoco.mjr_render(rect, self._scene, self._context)
        mujoco.mjr_readPixels(rgb, depth, rect, self._context)
        return rgb[::-1].copy(), self._metres(depth[::-1].astype(np.float64))

    def _metres(self, buffer: np.ndarray) -> np.ndarray:
        near = self._model.vis.map.znear * self._model.stat.extent
        far = self._model.vis.map.zfar * self._model.stat.extent
        # Reversed depth: 1 at the near plane, 0 at the far one, linear in 1 / z.
        inverse = buffer * (1 / near - 1 / far) + 1 / far
        return np.where(buffer > 0, 1 / inverse, 0).astype(np.float32)

    def _free(self) -> None:
        if self._context is not None:
            self._context.free()
            self._context = None

    def close(self) -> None:
        """Give the OpenGL context back."""
        self._free()
        if self._gl is not None:
            self._gl.free()
            self._gl = None
        atexit.unregister(self.close)
