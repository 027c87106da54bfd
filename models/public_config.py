"""Sizes of networks whose public files carry none: the published ones, or a config.json's.

A `config.json` beside a weights file may hold fields of `VGGTConfig` or `VideoDiTConfig`. The one
that the hub has beside some of these files is understood too: a whole repository may be fetched.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from .errors import WeightsError
from .vggt import VGGTConfig
from .video_dit import OFFICIAL, PAPER, VideoDiTConfig

CONFIG = "config.json"
FORMS = {"official": OFFICIAL, "paper": PAPER}

# Fields of Wan's own config.json, and of diffusers', under the names that they have here.
_WAN = {
    "num_layers": "layers",
    "num_heads": "heads",
    "num_attention_heads": "heads",
    "attention_head_dim": "head_dim",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "text_dim": "text_dim",
    "text_len": "context_tokens",
    "out_dim": "latent_channels",
    "out_channels": "latent_channels",
    "patch_size": "patch",
}


def read_beside(path: Path) -> dict[str, Any]:
    """The config.json in the folder of a weights file; {} where there is none."""
    file = Path(path).parent / CONFIG
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: not readable as JSON ({error}); fetch it again") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{file}: holds no object; fetch it again")
    return found


def vggt_config(path: Path, *, heads_built: Collection[str], wrist_kind: str) -> VGGTConfig:
    """The configuration of a VGGT file: VGGT-1B's, or what the config.json beside it says.

    Args:
        path: of the weights. heads_built, wrist_kind: as of `VGGTConfig`; the caller's choice.

    Raises:
        WeightsError: a config.json with fields that are not known.
    """
    found = read_beside(path)
    if "embed_dim" in found:  # the hub's, beside facebook/VGGT-1B
        grid = found.get("img_size", 518) // found.get("patch_size", 14)
        found = {"dim": found["embed_dim"], "grid": grid}
    chosen = {"heads_built": tuple(heads_built), "wrist_kind": wrist_kind}
    return _made(VGGTConfig, path, {**found, **chosen})


def video_config(path: Path, form: str) -> VideoDiTConfig:
    """The configuration of a video DiT's file: the 1.3B's, or what the config.json beside it says.

    Args:
        path: of the weights: Wan's own, or the released ones. form: "official" or "paper".

    Raises:
        WeightsError: a config.json with fields that are not known.
    """
    found = read_beside(path)
    if "_class_name" in found or "model_type" in found:
        if "dim" in found and "num_heads" in found:
            found["attention_head_dim"] = found["dim"] // found["num_heads"]
        found = {own: found[public] for public, own in _WAN.items() if public in found}
    base = FORMS[form].to_dict()
    return _made(VideoDiTConfig, path, {**base, **found, "form": form})


def fitting(kind: Any, path: Path, values: Mapping[str, Any]) -> Any:
    """A configuration of `kind` from the fields of one in a weights file's header.

    Raises:
        WeightsError: fields that are not known, or values that do not fit.
    """
    return _made(kind, path, values, "its header")


def _made(kind: Any, path: Path, values: Mapping[str, Any], where: str = CONFIG) -> Any:
    unknown = sorted(values.keys() - {field.name for field in fields(kind)})
    place = path.parent / where if where == CONFIG else path
    if unknown:
        raise WeightsError(
            f"{place}: has fields that {kind.__name__} does not know ({', '.join(unknown)}); give "
            "sizes of that network, or remove them"
        )
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return kind(**plain)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{place}: {error}; fetch it again or correct it") from None
