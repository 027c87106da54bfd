"""Cameras of MuJoCo models: what the reader says of them, against MuJoCo itself."""

from __future__ import annotations

import re

import numpy as np
import pytest
from wristaugment.readers.mujoco_model import pinhole, read_model

MODEL = """<mujoco><compiler {compiler}/><worldbody>
  <camera name="plain" pos="1 2 3"/>
  <camera name="axes" pos="1 0 1" xyaxes="0 2 0 -1 1 1" fovy="60"/>
  <camera name="euler" euler="{euler}" fovy="50"/>
  <body name="stand" pos="0.2 0.1 0" axisangle="0 1 1 {angle}">
    <frame pos="0 0 1" euler="{euler}"><camera name="framed" zaxis="1 2 3"/></frame>
    <body name="arm" pos="0 0 0.3" quat="2 0 1 0"><joint axis="0 0 1"/><geom size="0.1"/>
      <body name="hand" pos="0 0.1 0.2" euler="{euler}">
        <camera name="eye" pos="0.05 0 0" quat="0 0.7 0.7 0" fovy="75"/>
        <body pos="0 0 0.1" quat="0.7 0 0 -0.7"><site name="tip" pos="0 0.01 0.09"/></body>
        <body name="finger"><joint type="slide"/><geom size="0.1"/><site name="far"/></body>
      </body></body></body>
  <camera name="tracking" mode="targetbody" target="arm"/>
</worldbody></mujoco>"""
KINDS = {
    "degrees": {"compiler": "", "euler": "10 -20 30", "angle": "40"},
    "radians": {"compiler": 'angle="radian"', "euler": "0.1 -0.2 0.3", "angle": "0.7"},
    "extrinsic": {"compiler": 'eulerseq="ZYX"', "euler": "10 -20 30", "angle": "40"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_cameras_lie_where_mujoco_has_them(kind):
    mujoco = pytest.importorskip("mujoco")
    text = MODEL.format(**KINDS[kind])
    found = read_model(text)
    assert found is not None and set(found.cameras) == {"plain", "axes", "euler", "framed", "eye"}
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    data.qpos[:] = 0.4, 0.1  # what is bolted together stays so wherever the joints are
    mujoco.mj_forward(model, data)

    def pose(name):
        out = np.eye(4)
        out[:3, :3] = data.cam(name).xmat.reshape(3, 3) * [1, -1, -1]
        out[:3, 3] = data.cam(name).xpos
        return out

    for name in ("plain", "axes", "euler", "framed"):
        assert found.static_pose(name) == pytest.approx(np.linalg.inv(pose(name)), abs=1e-9)
        assert found.cameras[name].fov == pytest.approx(float(model.camera(name).fovy[0]))
    effector = np.eye(4)
    effector[:3, :3] = data.body("hand").xmat.reshape(3, 3)
    effector[:3, 3] = data.site("tip").xpos
    mount = found.mount("eye", "hand", re.compile("tip"))
    assert mount == pytest.approx(np.linalg.inv(effector) @ pose("eye"), abs=1e-9)


def test_what_moves_is_not_fixed():
    found = read_model(MODEL.format(**KINDS["radians"]))
    assert found is not None
    assert found.static_pose("eye") is None and found.static_pose("nobody") is None
    assert found.mount("eye", "hand", re.compile("far")) is None  # on a finger that slides
    assert found.mount("eye", "arm", re.compile("tip")) is not None
    assert found.mount("plain", "hand", re.compile("tip")) is None
    assert found.mount("eye", "hand", re.compile("tip|far")) is None  # two of that name


def test_what_is_not_understood_is_none():
    good = MODEL.format(**KINDS["radians"])
    assert read_model(good) is not None
    for bad in ("", "no xml", "<mujoco/>", "<robot><worldbody/></robot>", "<!DOCTYPE a>" + good):
        assert read_model(bad) is None
    assert read_model(good.replace("<compiler", '<compiler coordinate="global"')) is None
    odd = good.replace('pos="1 2 3"', 'pos="1 2"').replace('fovy="60"', 'sensorsize="1 1"')
    assert set(read_model(odd).cameras) == {"euler", "framed", "eye"}
    deep = "<mujoco><worldbody>" + "<body>" * 300 + '<camera name="c"/>' + "</body>" * 300
    assert read_model(deep + "</worldbody></mujoco>").cameras == {}


def test_a_field_of_view_is_a_focal_length():
    K = pinhole(90.0, (100, 200))
    assert pytest.approx(np.array([[50, 0, 99.5], [0, 50, 49.5], [0, 0, 1]])) == K
    assert pinhole(None, (100, 200)) is None
