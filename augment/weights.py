"""What each recipe needs of weights, where it lies, and whether it is right. Imports no torch.

Weights lie below roots: `--weights DIR`, then $WRISTAUGMENT_WEIGHTS, then the user's cache. A
public file is at OWNER/REPOSITORY/PATH below a root; what `wristaugment train` writes is directly
in it. nano's are in the package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..models.errors import WeightsError
from ..readers.errors import SourceError
from .recipe import (
    ABLATIONS,
    GENERATION,
    PIX2PIX,
    RECONSTRUCTION,
    WEIGHTS,
    Recipe,
    get_recipe,
)
from .weights_hashes import cache_folder, check_hash, read_records, remembered_sha256
from .weights_needs import APACHE, FIRST_FRAME, I2V, Need

ENVIRONMENT = "WRISTAUGMENT_WEIGHTS"
INDEX = ".index.json"  # what the list of a sharded file's shards adds to its name

NON_COMMERCIAL = "CC BY-NC 4.0 (non-commercial)"
VGGT_NOTICE = (
    "facebook/VGGT-1B is licensed CC BY-NC 4.0: not for commercial use; for that there is "
    "facebook/VGGT-1B-Commercial, which is gated (accept its terms on the hub, fetch its file and "
    "give it to --from as model.safetensors or model.pt)"
)
RELEASE_NOTICE = (
    "XuWuLingYu/WristWorld names no licence, and its VGGT derives from facebook/VGGT-1B, which is "
    "CC BY-NC 4.0: not for commercial use; ask its authors what else you may do with it"
)

_T2V = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
_CLIP = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
_WRISTWORLD = "XuWuLingYu/WristWorld"
_WAN_PARTS = (
    Need(
        "vae",
        _T2V,
        "vae/diffusion_pytorch_model.safetensors",
        507_600_000,
        APACHE,
        "video autoencoder",
        beside=("vae/config.json",),
    ),
    Need(
        "prompt",
        _T2V,
        "text_encoder/model.safetensors",
        22_720_000_000,
        APACHE,
        "prompt encoder (UMT5-XXL)",
        beside=("text_encoder/config.json",),
    ),
    Need(
        "tokenizer",
        _T2V,
        "tokenizer/tokenizer.json",
        21_500_000,
        APACHE,
        "tokenizer of the prompt encoder",
        beside=("tokenizer/tokenizer_config.json",),
        extras=("tokenizer/special_tokens_map.json", "tokenizer/spiece.model"),
    ),
)


def _own(
    stage: str, size: int, why: str, *, optional: bool = False, licence: str = "yours"
) -> Need:
    name = RECONSTRUCTION if stage == "reconstruction" else GENERATION
    return Need(stage, "", name, size, licence, why, optional=optional)


_NANO = (
    _own("reconstruction", 25_436_488, "small VGGT with its wrist head", licence=APACHE),
    _own("generation", 17_525_136, "small video DiT", licence=APACHE),
)
_NEEDS: dict[str, tuple[Need, ...]] = {
    "nano": _NANO,
    "projection": _NANO[:1],
    **{
        f"nano-no-{part}": tuple(
            replace(need, main=get_recipe(f"nano-no-{part}").file(need.part), licence="yours")
            for need in (_NANO[1:] if part == "map" else _NANO)
        )
        for part in ABLATIONS
    },
    "paper": (
        Need(
            "vggt",
            "facebook/VGGT-1B",
            "model.safetensors",
            5_030_000_000,
            NON_COMMERCIAL,
            "geometry of the anchor views (VGGT-1B)",
            other_names=("model.pt",),
            extras=("config.json",),
            notice=VGGT_NOTICE,
        ),
        Need(
            "dit",
            "Wan-AI/Wan2.1-T2V-1.3B",
            "diffusion_pytorch_model.safetensors",
            5_680_000_000,
            APACHE,
            "video DiT (Wan 2.1 1.3B)",
            extras=("config.json",),
        ),
        *_WAN_PARTS,
        Need(
            "image",
            _CLIP,
            "open_clip_model.safetensors",
            605_200_000,
            "MIT",
            "features of the anchor views (CLIP ViT-B/32)",
            beside=("open_clip_config.json",),
        ),
        _own("reconstruction", 280_000_000, "wrist head, of your training"),
        _own("generation", 300_000_000, "tuned video DiT, of your training"),
    ),
    "official": (
        Need(
            "vggt",
            _WRISTWORLD,
            "VGGT/checkpoint.pt",
            6_500_000_000,
            "none named",
            "VGGT-1B with the wrist head, as released",
            extras=("VGGT/config.json",),
            notice=RELEASE_NOTICE,
        ),
        Need(
            "dit",
            _WRISTWORLD,
            "VideoModel/video_dit_lora.safetensors",
            5_730_000_000,
            "none named",
            "tuned video DiT, as released",
            extras=("VideoModel/config.json",),
            notice=RELEASE_NOTICE,
        ),
        *_WAN_PARTS,
        Need(
            "image",
            I2V,
            "image_encoder/model.safetensors",
            1_260_000_000,
            APACHE,
            "features of the anchor views (CLIP ViT-H/14)",
            beside=("image_encoder/config.json",),
        ),
        _own("reconstruction", 1_500_000_000, "wrist head, of your training", optional=True),
        _own("generation", 300_000_000, "tuned video DiT, of your training", optional=True),
    ),
    "pix2pix": (Need("generation", "", PIX2PIX, 9_260_000, "yours", "Pix2Pix, of your training"),),
    **FIRST_FRAME,
    "constant": (),
}


@dataclass(frozen=True)
class Part:
    """What was found for a need.

    Attributes:
        path: the weights file; where it comes in shards, their index.
        files: {place below the root: path} of every file that is loaded.
    """

    need: Need
    root: Path
    path: Path
    files: dict[str, Path]

    @property
    def folder(self) -> Path:
        """Where the part's files lie, as libraries want them named."""
        return self.path.parent

    def weights(self) -> list[Path]:
        """The files that hold tensors, in the order of their names."""
        return [path for path in self.files.values() if path.suffix in (".safetensors", ".pt")]


@dataclass(frozen=True)
class Located:
    """The parts of a recipe that are there, by name: `located["vggt"].path`."""

    recipe: Recipe
    parts: dict[str, Part] = field(default_factory=dict)

    def __getitem__(self, part: str) -> Part:
        return self.parts[part]

    def __contains__(self, part: str) -> bool:
        return part in self.parts

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)


def requirements(recipe: Recipe | str) -> tuple[Need, ...]:
    """What a recipe needs; () for one without weights."""
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    return _NEEDS[recipe.name]


def own_folder(located: Located, weights: Path | None = None) -> Path | None:
    """Where what was trained for a recipe lies, and what belongs to it; None where nothing was.

    Args:
        weights: as of --weights.
    """
    for name in ("generation", "reconstruction"):
        if name in located and not located[name].need.repository:
            return located[name].folder
    return weights


def notices(recipe: Recipe | str) -> list[str]:
    """What a user must know of the licences before a recipe runs, a line each."""
    return list(dict.fromkeys(need.notice for need in requirements(recipe) if need.notice))


def is_packaged(recipe: Recipe) -> bool:
    """Whether the package brings the recipe's weights."""
    return recipe.weights is not None


def roots(recipe: Recipe, weights: Path | None = None) -> list[Path]:
    """The folders that are searched, in this order; the first is where new files go.

    Args:
        weights: as of --weights. For packaged weights it takes the package's place.
    """
    if recipe.weights is not None:
        return [Path(weights) if weights is not None else WEIGHTS / recipe.weights]
    given = [Path(weights)] if weights is not None else []
    named = os.environ.get(ENVIRONMENT)
    if named:
        given.append(Path(named).expanduser())
    return list(dict.fromkeys([*given, cache_folder() / "weights"]))


def find(recipe: Recipe, need: Need, weights: Path | None = None) -> tuple[Part | None, list[str]]:
    """Look for one need in the roots.

    Returns:
        the part, from the first root that has all of it (else None), and the places that are
        missing in the root that has some of it (else in the first).

    Raises:
        WeightsError: an index of shards that cannot be read.
    """
    searched = roots(recipe, weights)
    if need.optional and not need.repository:
        # One's own in place of the released ones is a choice, and --weights is where it is made.
        searched = searched[:1] if weights is not None else []
    lacking: list[str] = []
    for root in searched:
        part, missing = find_below(root, need)
        if part is not None and not missing:
            return part, []
        if part is not None or not lacking:
            lacking = missing
    return None, lacking


def find_below(root: Path, need: Need) -> tuple[Part | None, list[str]]:
    """Look for a need in one root: (what is there of it or None, the places that are missing)."""
    path = missing = None
    files: dict[str, Path] = {}
    for name in (need.main, *need.other_names):
        index = root / need.place(name + INDEX)
        if index.is_file():
            path = index
            files[need.place(name + INDEX)] = index
            for shard in shards(index):
                place = need.place((Path(name).parent / shard).as_posix())
                files[place] = root / place
            break
        if (root / need.place(name)).is_file():
            path = root / need.place(name)
            files[need.place(name)] = path
            break
    if path is None:
        return None, [need.place(name) for name in (need.main, *need.beside)]
    files |= {need.place(name): root / need.place(name) for name in need.beside}
    missing = [place for place, file in files.items() if not file.is_file()]
    extras = {need.place(name): root / need.place(name) for name in need.extras}
    files |= {place: file for place, file in extras.items() if file.is_file()}
    return Part(need, root, path, files), missing


def shards(index: Path) -> list[str]:
    """The names of the files that an index lists, sorted.

    Raises:
        WeightsError: it is no such index, or names files outside its folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: not an index of shards ({error}); fetch it again") from None
    if not names or any(not isinstance(n, str) or Path(n).name != n for n in names):
        raise WeightsError(f"{index}: lists no files, or some elsewhere; fetch it again")
    return names


def locate(
    recipe: Recipe | str, weights: Path | None = None, *, parts: Collection[str] | None = None
) -> Located:
    """Where the weights of a recipe lie; their content is not looked at.

    Args:
        weights: as of --weights. parts: only these; default all.

    Raises:
        SourceError: some are missing, or --weights was given to a recipe that has none.
        WeightsError: an index of shards that cannot be read.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    needs = requirements(recipe)
    if not needs and weights is not None:
        raise SourceError(
            f"recipe {recipe.name!r} uses no weights", key="--weights", todo="leave it out"
        )
    found: dict[str, Part] = {}
    missing: list[tuple[Need, list[str]]] = []
    for need in needs:
        if parts is not None and need.part not in parts:
            continue
        part, lacking = find(recipe, need, weights)
        if part is not None:
            found[need.part] = part
        elif not need.optional:
            missing.append((need, lacking))
    if missing:
        raise _missing(recipe, missing, roots(recipe, weights))
    return Located(recipe, found)


def _missing(recipe: Recipe, missing: list[tuple[Need, list[str]]], searched: list[Path]):
    """The SourceError for weights that are not there."""
    if is_packaged(recipe):
        return SourceError(
            f"these weights of recipe {recipe.name!r} are not here",
            file=searched[0] / missing[0][1][0],
            key="--weights",
            todo="give --weights the folder that `wristaugment train` wrote, or reinstall",
        )
    places = [place for _, lacking in missing for place in lacking]
    shown = ", ".join(places[:4]) + (f" and {len(places) - 4} more" if places[4:] else "")
    todo = []
    if any(need.repository for need, _ in missing):
        todo.append(f"fetch with `wristaugment weights {recipe.name} --download` (or --from DIR)")
    stages = [need.part for need, _ in missing if not need.repository]
    if stages:
        todo.append(
            f"train with `wristaugment train {' and '.join(stages)} --recipe {recipe.name}`"
        )
    return SourceError(
        f"weights of recipe {recipe.name!r} are missing in "
        f"{', '.join(str(root) for root in searched)}: {shown}",
        key="--weights",
        todo="; ".join(todo),
    )


def check(
    recipe: Recipe | str,
    weights: Path | None = None,
    *,
    parts: Collection[str] | None = None,
    hashes: bool = True,
) -> Located:
    """Refuse weights that are missing, of another network or recipe, or not as recorded.

    Names and shapes come from the files' headers; hashes read whole files, but each only once as
    long as it does not change.

    Args:
        weights, parts: as of `locate`. hashes: whether files are compared with their record.

    Raises:
        SourceError, WeightsError: one line that says what and what to do.
    """
    located = locate(recipe, weights, parts=parts)
    if not located.parts:
        return located
    from .weights_shapes import check_part

    for part in located.parts.values():
        check_part(located, part)
    if hashes:
        check_records(located)
    return located


def check_records(located: Located) -> None:
    """WeightsError where any file is not as it was recorded when it was fetched."""
    for part in located.parts.values():
        check_record(part)


@dataclass(frozen=True)
class Status:
    """How it stands with one need.

    Attributes:
        state: "ready", "missing", "wrong" or "unused" (optional, and not there).
        text: what is wrong or missing and what to do; "" where all is well.
    """

    need: Need
    state: str
    part: Part | None = None
    text: str = ""


def look(recipe: Recipe | str, weights: Path | None = None) -> list[Status]:
    """How it stands with every need of a recipe; what `check` refuses is told here instead."""
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    found: dict[str, Part] = {}
    statuses = []
    for need in requirements(recipe):
        try:
            part, lacking = find(recipe, need, weights)
            if part is None:
                state = "unused" if need.optional else "missing"
                statuses.append(Status(need, state, text=", ".join(lacking)))
                continue
            found[need.part] = part
            from .weights_shapes import check_part

            check_part(Located(recipe, found), part)
            check_record(part)
            statuses.append(Status(need, "ready", part))
        except WeightsError as error:
            statuses.append(Status(need, "wrong", found.get(need.part), str(error)))
    return statuses


def check_record(part: Part) -> None:
    """WeightsError where a file of a part is not as it was recorded when it was fetched."""
    records = read_records(part.root)
    for place, path in part.files.items():
        if place in records:
            check_hash(path, records[place])


def fingerprint(
    recipe: Recipe | str,
    weights: Path | None = None,
    *,
    parts: Collection[str] | None = None,
    located: Located | None = None,
) -> dict[str, str]:
    """{place below its root: SHA-256} of every file that the recipe loads; no path is in it.

    Args:
        located: what `check` or `locate` gave, to save looking again.

    Raises:
        SourceError, WeightsError: as `locate`.
    """
    located = located or locate(recipe, weights, parts=parts)
    return {
        place: remembered_sha256(path)
        for part in located.parts.values()
        for place, path in sorted(part.files.items())
    }
