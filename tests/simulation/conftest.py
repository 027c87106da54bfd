"""What the simulation's tests share: a renderer check, the robot, and one small corpus."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
from wristaugment.readers.errors import SourceError


@pytest.fixture(scope="session")
def mujoco():
    """MuJoCo, with a backend chosen, or a skip that says what is missing."""
    from wristaugment.simulation.render import choose_backend

    try:
        choose_backend()
    except SourceError as error:
        pytest.skip(f"no renderer: {error}")
    return pytest.importorskip("mujoco")


@pytest.fixture(scope="session")
def robot(mujoco):
    """The Panda from the installed package, or a skip."""
    from wristaugment.simulation.robot import load_robot

    try:
        return load_robot()
    except SourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def renderer(robot):
    """A process of its own to render in: `renderer(function, *arguments)`, or a skip.

    TensorFlow and Mesa's llvmpipe each bring an LLVM, and a process with both crashes.
    """
    from wristaugment.simulation.corpus import Plan, make_payload

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:

        def call(function, *arguments):
            return pool.submit(function, *arguments).result()

        try:
            call(make_payload, Plan("train", 1, 1, 1, 0, False), 0)
        except SourceError as error:
            pytest.skip(f"no renderer: {error}")
        yield call


@pytest.fixture(scope="session")
def corpus(renderer, tmp_path_factory):
    """(root, version folder) of three episodes of four steps with depth, by two workers."""
    from wristaugment.simulation.corpus import Plan, write_corpus

    root = tmp_path_factory.mktemp("corpus")
    plan = Plan("train", episodes=3, shards=2, steps=4, seed=5, depth=True)
    write = partial(write_corpus, root, [plan], workers=2, progress=False)
    return root, renderer(write)
