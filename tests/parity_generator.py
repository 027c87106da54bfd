"""The generator against a fixture of the public implementation: inputs and weights by the rule.

The weights are a function of each entry's public name and shape, the inputs of a seed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from weights_rule import relative_error, rule_weight
from wristaugment.models.flow import make_schedule, predict, sample_latents
from wristaugment.models.released import released_name
from wristaugment.models.video_dit import VideoDiT, VideoDiTConfig


def reads(meta: Mapping, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether this module compares such a fixture."""
    return "text_len" in meta and "ext_dim" in meta


def bound(name: str) -> float:
    """The largest relative error at which an output agrees."""
    return 1e-3


def config_of(meta: Mapping) -> VideoDiTConfig:
    """The sizes that a fixture's meta names."""
    return VideoDiTConfig(
        layers=meta["layers"],
        heads=meta["heads"],
        head_dim=meta["dim"] // meta["heads"],
        ffn_dim=meta["ffn_dim"],
        freq_dim=meta.get("freq_dim", 256),
        text_dim=meta["text_dim"],
        context_tokens=meta["text_len"],
        ext_dim=meta["ext_dim"],
        ext_hidden=meta["ext_hidden"],
        # Rows of an embedding follow from the rule one by one: a longer table begins the same.
        views=max(2, meta["V"]),
        frames=max(200, meta["T"]),
    )


def build(meta: Mapping) -> VideoDiT:
    """The network of a fixture's meta, filled by the rule."""
    network = VideoDiT(config_of(meta)).eval()
    network.load_state_dict(
        {
            k: torch.from_numpy(np.asarray(rule_weight(released_name(k), tuple(v.shape))))
            for k, v in network.state_dict().items()
        }
    )
    return network


def inputs(meta: Mapping) -> dict[str, Tensor]:
    """text, negative [B, L, D], ext [B, V, T, E], noise and condition [B, 16, F, h, w]."""
    B, V, T, F, h, w = (meta[k] for k in "BVTFhw")
    prompt, latents = (B, meta["text_len"], meta["text_dim"]), (B, 16, F, h, w)
    shapes = {
        "text": prompt,
        "negative": prompt,
        "ext": (B, V, T, meta["ext_dim"]),
        "noise": latents,
        "condition": latents,
    }
    rng = np.random.default_rng(meta["seed"])
    return {
        name: torch.as_tensor(rng.standard_normal(shape, dtype=np.float32))
        for name, shape in shapes.items()
    }


@torch.no_grad()
def outputs(meta: Mapping, *, batched: bool = True) -> dict[str, np.ndarray]:
    """Everything that a generator fixture holds, as this implementation computes it."""
    network, given = build(meta), inputs(meta)
    noise, condition = given["noise"], given["condition"]
    positive = network.encode_context(given["text"], given["ext"])
    negative = network.encode_context(given["negative"])
    schedule = make_schedule(meta["steps"], meta["shift"])
    first = predict(
        network, noise, schedule.timesteps[0], condition, positive, negative, batched=batched
    )
    latents = sample_latents(
        network,
        noise,
        condition,
        positive,
        negative,
        steps=meta["steps"],
        guidance=meta["guidance"],
        shift=meta["shift"],
        batched=batched,
    )
    found = {
        "context": positive[:, ::7, ::5],
        "sigmas": schedule.sigmas[:-1],
        "timesteps": schedule.timesteps,
        "first_positive": first[0],
        "first_negative": first[1],
        "latents": latents,
    }
    return {name: np.asarray(value) for name, value in found.items()}


def errors(
    meta: Mapping, arrays: Mapping[str, np.ndarray], *, batched: bool = True
) -> dict[str, float]:
    """{output: norm of the difference over norm} for every output that the fixture holds.

    Args:
        meta: the fixture's, decoded. arrays: its outputs by name; `meta` among them is skipped.
        batched: both branches of guidance in one pass, or one after the other.

    Raises:
        ValueError: an output that is unknown or of another shape.
    """
    found = outputs(meta, batched=batched)
    measured = {}
    for name, wanted in arrays.items():
        if name == "meta":
            continue
        if name not in found or found[name].shape != wanted.shape:
            raise ValueError(
                f"{name}: found {found[name].shape if name in found else 'nothing'}, the fixture "
                f"has {wanted.shape}: it is not a generator's, or its meta is of another run"
            )
        measured[name] = relative_error(found[name], wanted)
    return measured
