"""What a key of a dataset can be, a camera or some numbers, and the profile that says which."""

from __future__ import annotations

from dataclasses import dataclass

# Where datasets keep the instruction; those that a dataset lacks are left out.
LANGUAGE = (
    "language_instruction",
    "observation/natural_language_instruction",
    "observation/language_instruction",
    "natural_language_instruction",
)


@dataclass(frozen=True)
class Camera:
    """A camera stream and what is known of it; keys without the leading `steps/`.

    Attributes:
        key: its pictures.
        extrinsics: 6 numbers per episode: the camera's pose in the robot base, xyz in metres and
            extrinsic "xyz" euler angles in radians.
        intrinsics: 4 numbers per episode: fx, fy, cx, cy in pixels of the stored pictures.
        depth: 16-bit images of the distance along the optical axis, 0 = none.
        depth_unit: metres that a depth of 1 stands for.
        optional: whether some versions of the dataset lack it.
    """

    key: str
    extrinsics: str | None = None
    intrinsics: str | None = None
    depth: str | None = None
    depth_unit: float = 0.001
    optional: bool = False


@dataclass(frozen=True)
class Numbers:
    """Some of the numbers that a key holds per step.

    Attributes:
        key: the feature.
        start, count: the slice of its numbers (of all of them, row by row, where it is a table).
        inverted: True where the largest means open (a gripper's width).
        lowest, highest: a gripper's range; it is scaled to [0, 1].
        encoding: of an end effector's pose, see readers/poses.
        rotation: where the orientation is, if it is not behind the position.
    """

    key: str
    start: int = 0
    count: int = 1
    inverted: bool = False
    lowest: float = 0.0
    highest: float = 1.0
    encoding: str = "euler_xyz"
    rotation: Numbers | None = None


@dataclass(frozen=True)
class Profile:
    """What each key of a dataset is.

    Attributes:
        name: how users call it.
        aliases: other names of the same thing: builder names and folder names.
        anchors: the third-person cameras, the most useful first.
        wrist: the recorded hand camera, where there is one.
        eef: the end effector's pose in the robot base, per step.
        gripper: the gripper's opening, per step.
        language: keys of the instruction; the first that is not empty counts.
    """

    name: str
    aliases: tuple[str, ...] = ()
    anchors: tuple[Camera, ...] = ()
    wrist: Camera | None = None
    eef: Numbers | None = None
    gripper: Numbers | None = None
    language: tuple[str, ...] = ("language_instruction",)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it answers to."""
        return (self.name, *self.aliases)

    def cameras(self) -> tuple[Camera, ...]:
        """The anchors, then the wrist camera."""
        return (*self.anchors, self.wrist) if self.wrist else self.anchors
