"""Procedural pictures for the surfaces of a scene: [H, W, 3] uint8, from random numbers alone."""

from __future__ import annotations

import numpy as np


def _resize(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, wrapping around, so that a repeated texture shows no seam."""
    rows = np.arange(size[0]) * grid.shape[0] / size[0]
    cols = np.arange(size[1]) * grid.shape[1] / size[1]
    r, c = rows.astype(int), cols.astype(int)
    fr, fc = (rows - r)[:, None], (cols - c)[None, :]
    below, right = (r + 1) % grid.shape[0], (c + 1) % grid.shape[1]
    top = grid[np.ix_(r, c)] * (1 - fc) + grid[np.ix_(r, right)] * fc
    bottom = grid[np.ix_(below, c)] * (1 - fc) + grid[np.ix_(below, right)] * fc
    return top * (1 - fr) + bottom * fr


def noise(rng: np.random.Generator, size: tuple[int, int], scale: tuple[int, int]) -> np.ndarray:
    """Smooth noise in -1..1, [H, W]: `scale` is the number of coarse cells down and across."""
    total = np.zeros(size)
    for octave in range(4):
        cells = (
            min(scale[0] * 2**octave, size[0]),
            min(scale[1] * 2**octave, size[1]),
        )
        total += _resize(rng.uniform(-1, 1, cells), size) * 0.5**octave
    return np.clip(total / 1.4, -1, 1)


def surface(rng: np.random.Generator, colour: np.ndarray, size: int = 256) -> np.ndarray:
    """A table, wall or floor around `colour` [3] in 0..1: plain, mottled, wood, tiles or cloth."""
    shape = (size, size)
    base = np.broadcast_to(np.asarray(colour, float), (size, size, 3)).copy()
    kinds = {"plain": 0.15, "mottled": 0.3, "wood": 0.25, "tiles": 0.15, "cloth": 0.15}
    kind = rng.choice(list(kinds), p=list(kinds.values()))
    other = np.clip(colour + rng.uniform(-0.25, 0.25, 3), 0, 1)
    if kind == "mottled":
        patches = noise(rng, shape, (cells := int(rng.integers(2, 12)), cells))
        weight = (patches * rng.uniform(0.2, 0.7) + 0.4)[..., None]
        base = base * (1 - weight) + other * weight
    elif kind == "wood":
        bend = noise(rng, shape, (2, 8)) * rng.uniform(0.5, 2.5)
        lines = np.sin((np.arange(size)[None, :] / size * rng.integers(6, 24) + bend) * 2 * np.pi)
        grain = noise(rng, shape, (3, 64)) * 0.5
        weight = (0.5 + 0.3 * lines + 0.3 * grain)[..., None] * rng.uniform(0.3, 0.8)
        base = base * (1 - weight) + other * 0.8 * weight
    elif kind == "tiles":
        number = int(rng.integers(2, 9))
        step = np.arange(size) * number // size
        checks = (step[:, None] + step[None, :]) % 2
        lines = (np.arange(size) * number % size) < size * 0.04
        base = np.where(checks[..., None] > 0, base, base * 0.6 + other * 0.4)
        base = np.where((lines[:, None] | lines[None, :])[..., None], base * 0.6, base)
    elif kind == "cloth":
        number = int(rng.integers(4, 20))
        wave = np.sin(np.arange(size) / size * number * 2 * np.pi)
        weight = ((wave[:, None] + wave[None, :]) * 0.2 + 0.4)[..., None]
        base = base * (1 - weight) + other * weight
    shade = 1 + 0.06 * noise(rng, shape, (3, 3)) + rng.normal(0, 0.015, shape)
    return _bytes(base * shade[..., None])


def wrap(rng: np.random.Generator, colour: np.ndarray, size: int = 64) -> np.ndarray:
    """An object's cube texture, [6 * size, size, 3]: six equal sides with a simple pattern."""
    base = np.broadcast_to(np.asarray(colour, float), (size, size, 3)).copy()
    light = np.clip(colour * 0.35 + 0.65, 0, 1)
    dark = colour * 0.45
    second = light if rng.random() < 0.6 else dark
    kind = rng.choice(["stripes", "checks", "dots", "label", "mottled"])
    grid = np.arange(size) / size
    if kind == "stripes":
        mask = np.broadcast_to((grid * rng.integers(2, 6) % 1 < 0.35)[:, None], (size, size))
    elif kind == "checks":
        number = int(rng.integers(3, 7))
        cells = (grid * number).astype(int)
        mask = (cells[:, None] + cells[None, :]) % 2 == 0
        second = colour * 0.65 + 0.35 * second
    elif kind == "dots":
        number = int(rng.integers(2, 5))
        local = grid * number % 1 - 0.5
        mask = local[:, None] ** 2 + local[None, :] ** 2 < 0.09
    elif kind == "label":
        mask = np.broadcast_to((abs(grid - 0.5) < rng.uniform(0.1, 0.2))[:, None], (size, size))
    else:
        mask = noise(rng, (size, size), (4, 4)) > 0.35
    grain = 1 + rng.normal(0, 0.01, (size, size, 1))
    side = _bytes(np.where(mask[..., None], second, base) * grain)
    return np.concatenate([side] * 6)


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8))
