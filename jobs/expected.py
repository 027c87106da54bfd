"""What a job knows of the quality of its frames: the threshold, the figures, and the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..augment.recipe import Recipe
from ..augment.weights import Located, own_folder
from ..readers.errors import SourceError
from ..readers.files import file_sha256

NEARLY_ALL = 0.9  # of the frames under the threshold: then it is the data, not the frames
FILE = "confidence.json"


@dataclass(frozen=True)
class About:
    """What is known ahead of a job.

    Attributes:
        text: what the expected SSIM is told from, or why it is not known.
        threshold: the weights' own, None where it is not known.
        weights: {confidence.json: SHA-256}, for the plan; empty where it is not used.
    """

    text: str
    threshold: float | None = None
    weights: dict[str, str] = field(default_factory=dict)


def confidence_of(
    recipe: Recipe, located: Located, given: Path | None, weights: dict[str, str]
) -> About:
    """What the weights of a job know of the quality of their frames.

    Args:
        given: --weights. weights: {file: SHA-256} of what is loaded.

    Raises:
        SourceError: confidence.json is damaged.
    """
    if recipe.generator == "constant":
        return About("unknown: a plain picture is no wrist view")
    from ..augment.confidence import load_confidence

    folder = own_folder(located, given)
    found, text = load_confidence(folder, recipe.name, weights)
    if found is None or folder is None:
        return About(text)
    return About(text, found.threshold, {FILE: file_sha256(folder / FILE)})


def least_ssim(asked: str | None, about: About) -> float | None:
    """The threshold of a job: as asked, else the weights' own; None where nothing is filtered.

    Raises:
        SourceError: it is no number from 0 to 1, or these weights cannot tell.
    """
    if asked is None or asked.strip().lower() == "none":
        return about.threshold if asked is None else None
    todo = "give a number from 0 to 1, as in 0.6, or none"
    try:
        value = float(asked)
    except ValueError:
        raise SourceError(f"{asked!r} is no number", key="--min-ssim", todo=todo) from None
    if not 0 <= value <= 1:
        raise SourceError(f"{asked} is no SSIM", key="--min-ssim", todo=todo)
    if about.threshold is None:
        raise SourceError(
            f"the quality of frames is {about.text}",
            key="--min-ssim",
            todo="fit it with `wristaugment train confidence`, or leave --min-ssim out",
        )
    return value


class Expected:
    """Adds up what is said of episodes; `least` is the job's threshold."""

    def __init__(self, least: float | None):
        self.least = least
        self.frames = self.below = self.known = self.invalid = self.unmade = 0
        self.episodes = self.episodes_below = 0
        self.total = 0.0

    def add(self, told: Sequence[dict]) -> None:
        """Add episodes, each as `work.quality` says it."""
        for item in told:
            self.episodes += 1
            self.frames += item["frames"]
            self.unmade += item["unmade"]
            self.invalid += item["frames"] - round(item["valid"] * item["frames"])
            mean = item.get("confidence")
            if mean is None:
                continue
            self.below += item["below"]
            self.known += item["frames"]
            self.total += mean * item["frames"]
            self.episodes_below += self.least is not None and mean < self.least

    def facts(self) -> dict:
        """For the summary and the manifest."""
        return {
            "min_ssim": self.least,
            "confidence": round(self.total / self.known, 4) if self.known else None,
            "below_frames": self.below,
            "below_episodes": self.episodes_below,
            "expected": self.lines(),
        }

    def lines(self) -> list[str]:
        """In words, for people."""
        if not self.known:
            return ["the SSIM to be expected is not known for these weights; nothing was filtered"]
        mean = f"an SSIM of {self.total / self.known:.2f} is expected on average"
        if self.least is None:
            return [f"{mean}; nothing was filtered (--min-ssim none)"]
        out = [
            f"{mean}; {self.below} of {self.frames} frames ({self.below / self.frames:.0%}) and "
            f"{self.episodes_below} of {self.episodes} episodes fall below {self.least:g} and are "
            "marked not valid (their pixels stay)"
        ]
        if self.unmade:
            out.append(f"{self.unmade} frames could not be made at all and are black")
        if self.below and self.invalid >= NEARLY_ALL * self.frames:
            out.append(
                "nearly all frames fall below it: these data are probably outside of what the "
                "weights know (another robot or other cameras, other scenes, or no calibration "
                "where the weights need one). Do not train on these frames: use weights that were "
                "trained on data like these (`wristaugment train --help`), give calibrated "
                "cameras, or, if you have looked and know better, lower --min-ssim"
            )
        return out
