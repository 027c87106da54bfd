"""What `auto` takes for the wrist's pose and the anchors' depth, and why. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

POSES = ("auto", "measured", "rigid", "head")
GEOMETRIES = ("auto", "recorded", "predicted", "fused", "fused-recorded", "fused-predicted")
FUSED = "fused"


@dataclass(frozen=True)
class Known:
    """What an episode has that a choice depends on.

    Attributes:
        calibrated: every anchor's camera is known, and lengths are in metres.
        eef, mount: the dataset has end-effector poses; has the hand camera's place on the hand.
        solved: a mount was given (--mount).
        depth: every anchor has depth.
    """

    calibrated: bool
    eef: bool
    mount: bool
    solved: bool = False
    depth: bool = False


@dataclass(frozen=True)
class Choice:
    """A choice, why it was made, and what would allow a better one ("" where nothing would)."""

    name: str
    why: str
    better: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.why}" + (f"; {self.better}" if self.better else "")


_SOLVE = "`wristaugment mount` can solve for the hand camera's place, for --pose rigid --mount FILE"


def choose_pose(known: Known) -> Choice:
    """Whose wrist pose `auto` takes: `measured`, `rigid` or `head`.

    What the data say of themselves comes first; a mount that was solved for comes before the head,
    whose errors it averages, but only where the anchors' calibration tells where the robot stands.
    """
    if known.eef and known.mount and known.calibrated:
        return Choice("measured", "end-effector poses and the camera's mount on the hand")
    if known.eef and known.solved and known.calibrated:
        return Choice("rigid", "the data do not say where the hand camera is bolted, --mount does")
    if not known.eef:
        return Choice("head", "the data have no end-effector poses")
    if not known.calibrated:
        better = _SOLVE if not (known.mount or known.solved) else (
            "--pose rigid would place the robot by the head's own poses, if these follow the hand"
        )  # fmt: skip
        why = "the anchors are not calibrated, so nothing ties them to the robot"
        return Choice("head", why, better)
    return Choice("head", "the data do not say where the hand camera is bolted to the hand", _SOLVE)


def choose_depth(known: Known) -> Choice:
    """Whose depth `auto` takes: `recorded` or `predicted`.

    It does not fuse over time: on short clips that gained less than the intervals are wide.
    """
    if known.depth and known.calibrated:
        return Choice("recorded", "every anchor has depth and calibration")
    if known.depth:
        return Choice("predicted", "an anchor is not calibrated, so its depth cannot be placed")
    return Choice("predicted", "not every anchor has depth")


def split_geometry(name: str) -> tuple[str, bool]:
    """(whose depth: "auto", "recorded" or "predicted"; whether it is fused over the episode)."""
    if name not in GEOMETRIES:
        raise ValueError(f"no geometry {name!r}; one of {', '.join(GEOMETRIES)}")
    first, _, rest = name.partition("-")
    return (rest or "auto", True) if first == FUSED else (name, False)
