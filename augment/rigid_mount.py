"""The hand camera is bolted to the hand: its mount, found from predicted poses and kinematics.

With E the end effector's poses in the robot base, C the predicted poses of the camera in the world
of the prediction, X the mount (end effector <- camera) and S the similarity world <- base:

    C_t = S_i E_t X        one X for all episodes, one S_i for each, known if the world is the base

Public solvers of the robot-world / hand-eye problem (OpenCV's calibrateRobotWorldHandEye) take one
base, metres and no outliers, and OpenCV is 60 MB; this wants a scale and a world per episode. So:
rotations start from a chordal average (block coordinate ascent, each step an SVD: Arun et al. 1987)
from the 24 rotations of a cube, and scipy's least_squares fits all episodes together with a Cauchy
loss. What the motions cannot tell has no information in that fit's Hessian, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeResult, least_squares
from scipy.sparse import block_diag, csr_matrix, hstack
from scipy.spatial.transform import Rotation

MOST_FRAMES = 64  # of an episode that the fit looks at, evenly spaced
MAX_ROTATION, MAX_OFFSET = 5.0, 0.05  # standard error, degrees and metres, of a mount that is told
MAX_SCALE = 0.3  # standard error of a scale's logarithm
_ROUNDS = 6  # of fits at most, each weighing residuals by what the one before left
_TURN, _SHIFT = np.radians(5), 0.03  # noise of predictions that the start assumes
_LEAST_TURN, _LEAST_SHIFT = np.radians(0.1), 1e-3  # noise below what any prediction has
_STEP = 1e-6  # of finite differences; unknowns are radians, metres and logarithms
_DENSE = 150  # unknowns up to which steps are solved by SVD, which is exact
_NOTHING = 1e-6  # information, of what there was, that rounding may have left
_INLIER = 3.0  # standard deviations
_TUNING = 2.385  # of the Cauchy loss, in standard deviations: 95% efficient on Gaussian noise


class Untold(ValueError):
    """The motions do not tell what was asked; the message says what, and what would."""


@dataclass(frozen=True)
class Track:
    """One episode's motion.

    Attributes:
        eef: [T, 4, 4] end effector in the robot base, metres.
        camera: [T, 4, 4] predicted world-to-camera poses of the hand camera.
        world_is_base: the predictions' world is the robot base, in metres (calibrated anchors).
    """

    eef: np.ndarray
    camera: np.ndarray
    world_is_base: bool = False


@dataclass(frozen=True)
class Similarity:
    """World <- base: x_world = scale * rotation [3, 3] @ x_base + translation [3].

    Attributes:
        scale: units of the world a metre.
    """

    scale: float
    rotation: np.ndarray
    translation: np.ndarray


SAME = Similarity(1.0, np.eye(3), np.zeros(3))


@dataclass(frozen=True)
class Fit:
    """A mount, and how it fits.

    Attributes:
        mount: [4, 4] end effector <- camera, metres.
        worlds: a similarity an episode; None where the episode's motion does not tell it.
        rotation, offset: per episode [T], how far predictions are from the rigid pose: degrees and
            metres; empty where there is no similarity.
        inliers: per episode [T] bool, within three standard deviations of the fit's own noise.
        rotation_error, offset_error: standard error of the mount in its least certain direction,
            degrees and metres; 0 for a mount that was given.
    """

    mount: np.ndarray
    worlds: list[Similarity | None]
    rotation: list[np.ndarray]
    offset: list[np.ndarray]
    inliers: list[np.ndarray]
    rotation_error: float = 0.0
    offset_error: float = 0.0


def rigid_pose(eef: np.ndarray, mount: np.ndarray, world: Similarity = SAME) -> np.ndarray:
    """[T, 4, 4] world-to-camera poses of a camera bolted to the hand.

    Args:
        eef: [T, 4, 4] base <- end effector. mount: [4, 4] end effector <- camera.
        world: world <- base.
    """
    held = eef @ mount
    out = np.tile(np.eye(4), (len(held), 1, 1))
    turn = world.rotation @ held[:, :3, :3]
    centre = world.scale * held[:, :3, 3] @ world.rotation.T + world.translation
    out[:, :3, :3] = np.swapaxes(turn, 1, 2)
    out[:, :3, 3] = -np.einsum("tij,tj->ti", out[:, :3, :3], centre)
    return out


def solve(tracks: Sequence[Track], *, start: np.ndarray | None = None) -> Fit:
    """The mount that all episodes share, and each one's similarity.

    Args:
        tracks: the episodes. Frames that are not finite are left out.
        start: [4, 4] a mount to start from too, as of a noisy calibration.

    Raises:
        Untold: the motions do not tell the mount, or no episode tells its similarity.
    """
    problem = _Problem(tracks)
    problem.start(start)
    told = problem.fit()
    if not all(told):
        if not any(told):
            raise Untold(_NO_WORLD)
        # What does not follow the hand has no say in where the camera is bolted to it.
        problem = _Problem([t for t, use in zip(tracks, told, strict=True) if use])
        problem.start(start)
        again = iter(problem.fit())
        told = [use and next(again) for use in told]
        if not any(told):
            raise Untold(_NO_WORLD)
    errors = problem.mount_errors()
    problem.refuse(*errors)
    mount = problem.mount()
    return _fitted(tracks, mount, told, *(float(error[0]) for error in errors))


def locate(track: Track, mount: np.ndarray) -> Fit:
    """The similarity of one episode whose mount [4, 4] is known.

    Raises:
        Untold: its motion does not tell the scale.
    """
    fit = _fitted([track], mount, [True])
    if fit.worlds[0] is None:
        raise Untold(_NO_WORLD)
    return fit


_NO_WORLD = (
    "the predicted camera does not follow the hand (or the hand stands still), so nothing tells "
    "where the robot stands; use calibrated anchors, or a better wrist head"
)


def _fitted(tracks, mount, told, rotation_error=0.0, offset_error=0.0) -> Fit:
    """Each episode's similarity under a mount, and its residuals."""
    worlds: list[Similarity | None] = []
    turns, shifts = [], []
    for track, use in zip(tracks, told, strict=True):
        world = None
        if track.world_is_base:
            world = SAME
        elif use:
            problem = _Problem([track], mount)
            problem.start(mount)
            world = problem.worlds()[0] if problem.fit()[0] else None
        worlds.append(world)
        turn, shift = _residuals(track, mount, world) if world else (np.empty(0), np.empty(0))
        turns.append(turn)
        shifts.append(shift)
    inliers = [np.empty(0, bool)] * len(tracks)
    if any(len(turn) for turn in turns):
        # Of one axis: the median length of three has 1.538 standard deviations (chi, 3 degrees).
        most = [_INLIER * 3**0.5 * _median(part) / 1.538 for part in (turns, shifts)]
        most = [max(most[0], np.degrees(_LEAST_TURN)), max(most[1], _LEAST_SHIFT)]
        pairs = zip(turns, shifts, strict=True)
        inliers = [(turn <= most[0]) & (shift <= most[1]) for turn, shift in pairs]
    return Fit(mount, worlds, turns, shifts, inliers, rotation_error, offset_error)


def _median(parts: list[np.ndarray]) -> float:
    return float(np.nanmedian(np.concatenate(parts)))


def _residuals(track: Track, mount: np.ndarray, world: Similarity) -> tuple[np.ndarray, np.ndarray]:
    """(degrees [T], metres [T]) between the predicted poses and the rigid ones."""
    found, rigid = track.camera, rigid_pose(track.eef, mount, world)
    turn = np.full(len(found), np.nan)
    finite = np.isfinite(found).all((1, 2)) & np.isfinite(rigid).all((1, 2))
    between = found[finite, :3, :3] @ np.swapaxes(rigid[finite, :3, :3], 1, 2)
    turn[finite] = np.degrees(Rotation.from_matrix(between).magnitude())
    return turn, np.linalg.norm(_centres(found) - _centres(rigid), axis=1) / world.scale


def _centres(pose: np.ndarray) -> np.ndarray:
    """Camera centres [T, 3] of world-to-camera poses."""
    return -np.einsum("tji,tj->ti", pose[:, :3, :3], pose[:, :3, 3])


def _nearest(matrices: np.ndarray) -> np.ndarray:
    """The rotations [..., 3, 3] nearest to matrices (Arun et al. 1987)."""
    U, _, Vt = np.linalg.svd(matrices)
    flip = np.ones(matrices.shape[:-1])
    flip[..., 2] = np.sign(np.linalg.det(U @ Vt))
    return (U * flip[..., None, :]) @ Vt


class _Problem:
    """Episodes padded to one length, and the unknowns: mount [6], then seven a free world.

    A world's seven are a rotation vector, the logarithm of its scale over the start's, and its
    translation in metres; rotations turn what the fit before has found.
    """

    def __init__(self, tracks: Sequence[Track], mount: np.ndarray | None = None):
        picked = [_thinned(track) for track in tracks]
        self.count = np.array([len(eef) for eef, _ in picked])
        if not self.count.all():
            raise Untold("an episode has no frame with a finite pose of hand and camera")
        width = self.count.max()
        # Padding repeats the last frame, with no weight.
        rows = np.minimum(np.arange(width), self.count[:, None] - 1)
        eef = np.stack([e[row] for (e, _), row in zip(picked, rows, strict=True)])
        camera = np.stack([c[row] for (_, c), row in zip(picked, rows, strict=True)])
        self.used = (np.arange(width) < self.count[:, None]).astype(float)
        self.turn, self.place = eef[..., :3, :3], eef[..., :3, 3]
        self.seen = np.swapaxes(camera[..., :3, :3], -1, -2)  # world <- camera
        self.centre = -np.einsum("ntij,ntj->nti", self.seen, camera[..., :3, 3])
        self.free = np.array([not track.world_is_base for track in tracks])
        self.given = mount is not None
        N = len(tracks)
        self.R = np.eye(3) if mount is None else _nearest(mount[:3, :3])
        self.x = np.zeros(3) if mount is None else mount[:3, 3].astype(float)
        self.W, self.s, self.t = np.tile(np.eye(3), (N, 1, 1)), np.ones(N), np.zeros((N, 3))

    def mount(self) -> np.ndarray:
        """[4, 4] as it is now."""
        out = np.eye(4)
        out[:3, :3], out[:3, 3] = self.R, self.x
        return out

    def worlds(self) -> list[Similarity]:
        """As they are now."""
        parts = zip(self.s, self.W, self.t, strict=True)
        return [Similarity(float(s), W, t) for s, W, t in parts]

    def start(self, known: np.ndarray | None) -> None:
        """Rotations by averaging, then scales and translations from the centres."""
        candidates = Rotation.create_group("O").as_matrix()
        if known is not None:
            candidates = np.concatenate([_nearest(known[None, :3, :3]), candidates])
            self.x = known[:3, 3].astype(float)
        if self.given:
            candidates = self.R[None]
        weight = self.used
        for _ in range(4):
            moment = np.einsum("nt,ntad,ntbc->nabcd", weight, self.seen, self.turn)
            pull = self._pull(weight)
            best = max((self._average(R, moment, pull) for R in candidates), key=lambda a: a[0])
            _, self.R, self.W = best
            candidates = self.R[None]
            off = np.linalg.norm(self._turns(self.R, self.W), axis=-1)
            noise = max(_LEAST_TURN, float(np.median(off[self.used > 0])))
            weight = self.used / (1 + (off / noise) ** 2)
        self._place(weight)

    def _pull(self, weight: np.ndarray) -> np.ndarray:
        """[N, 3, 3] what the paths of hand and camera say of each world's rotation.

        Paths say more the longer they are; the camera is taken to be at the hand.
        """
        total = weight.sum(1)[:, None]
        both = []
        for path in (self.place, self.centre):
            path = path - (weight[..., None] * path).sum(1, keepdims=True) / total[..., None]
            size = np.sqrt((weight * np.square(path).sum(-1)).sum(1) / total[:, 0])
            both.append((path / np.maximum(size, 1e-9)[:, None, None], size))
        (hand, length), (camera, moved) = both
        strength = (length / _SHIFT * _TURN) ** 2 * (moved > 1e-9) * (length > 1e-9)
        return strength[:, None, None] * np.einsum("nt,nta,ntb->nab", weight, camera, hand)

    def _average(self, R, moment, pull) -> tuple[float, np.ndarray, np.ndarray]:
        """(agreement, mount, worlds) after steps that each raise the agreement."""
        W = np.tile(np.eye(3), (len(moment), 1, 1))
        for _ in range(40):
            wanted = np.einsum("nabcd,cd->nab", moment, R) + pull
            W = np.where(self.free[:, None, None], _nearest(wanted), W)
            if not self.given:
                R = _nearest(np.einsum("nabcd,nab->cd", moment, W))
        agreement = np.einsum("nabcd,nab,cd->", moment, W, R)
        return float(agreement + (pull * W)[self.free].sum()), R, W

    def _place(self, weight: np.ndarray) -> None:
        """Scale and translation of the free worlds, from the paths (Umeyama 1991)."""
        w = weight[..., None] / weight.sum(1)[:, None, None]
        held = (self.place + self.turn @ self.x) @ np.swapaxes(self.W, 1, 2)
        middle, centre = (w * held).sum(1), (w * self.centre).sum(1)
        a, b = held - middle[:, None], self.centre - centre[:, None]
        aa, bb, ab = ((w * x).sum((1, 2)) for x in (a * a, b * b, a * b))
        # One that does not follow the hand gets the ratio of the paths' lengths, to start from.
        ratio = np.sqrt(np.maximum(bb, 1e-12) / np.maximum(aa, 1e-12))
        s = np.where(ab > 0.1 * np.sqrt(aa * bb), ab / np.maximum(aa, 1e-12), ratio)
        self.s = np.where(self.free, s, 1.0)
        self.t = np.where(self.free[:, None], centre - self.s[:, None] * middle, 0.0)

    def _turns(self, R: np.ndarray, W: np.ndarray) -> np.ndarray:
        """[N, T, 3] rotation vectors from the rigid to the predicted pose."""
        rigid = W[:, None] @ self.turn @ R
        between = np.swapaxes(rigid, -1, -2) @ self.seen
        return Rotation.from_matrix(between.reshape(-1, 3, 3)).as_rotvec().reshape(self.place.shape)

    def _off(self, unknowns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(radians [N, T, 3], metres [N, T, 3]) that unknowns leave."""
        R, x, W, s, t = self._values(unknowns)
        rigid = s[:, None, None] * (self.place + self.turn @ x) @ np.swapaxes(W, 1, 2) + t[:, None]
        # By the start's scale: by its own, a world that grows would make every residual small.
        return self._turns(R, W), (self.centre - rigid) / self.s[:, None, None]

    def _values(self, unknowns: np.ndarray):
        R, x, W, s, t = self.R, self.x, self.W.copy(), self.s.copy(), self.t.copy()
        if not self.given:
            R, x = R @ Rotation.from_rotvec(unknowns[:3]).as_matrix(), x + unknowns[3:6]
            unknowns = unknowns[6:]
        if self.free.any():
            own = unknowns.reshape(-1, 7)
            W[self.free] = Rotation.from_rotvec(own[:, :3]).as_matrix() @ W[self.free]
            s[self.free] *= np.exp(own[:, 3].clip(-5, 5))
            t[self.free] += own[:, 4:] * self.s[self.free, None]
        return R, x, W, s, t

    def fit(self) -> list[bool]:
        """Fit all unknowns; whether each episode's world is told."""
        size = 6 * (not self.given) + 7 * int(self.free.sum())
        self.noise = np.full(2, 1e9)
        if size == 0:
            return [True] * len(self.count)
        told = np.ones(len(self.count), bool)
        for _ in range(_ROUNDS):
            before = self.noise
            self._weigh(*self._off(np.zeros(size)))
            if (np.abs(np.log(self.noise / before)) < 0.05).all():
                break
            self.result: OptimizeResult = least_squares(
                self._scaled, np.zeros(size), jac=self._jacobian, method="trf",  # type: ignore[arg-type]
                loss="cauchy", f_scale=_TUNING,
                tr_solver="exact" if size <= _DENSE else "lsmr", max_nfev=25,
            )  # fmt: skip
            values = self._values(self.result.x)
            self.information = self._informations()
            self.R, self.x, self.W, self.s, self.t = values
            blocks = self.information[2]
            errors = [np.linalg.inv(block + 1e-6 * np.eye(7))[3, 3] for block in blocks]
            told[self.free] = np.array(errors) < MAX_SCALE**2
            if not told.any():
                break
        return told.tolist()

    def _weigh(self, turn: np.ndarray, shift: np.ndarray) -> None:
        """Noise of one axis, by the median over all episodes, and how many frames count as one."""
        used = self.used > 0
        deviation = [1.4826 * np.median(np.abs(off[used])) for off in (turn, shift)]
        self.noise = np.maximum(deviation, [_LEAST_TURN, _LEAST_SHIFT])
        # Errors of neighbouring frames are alike (Bartlett 1946), and those of an episode may be.
        pairs = used[:, 1:] & used[:, :-1]
        shares = []
        for off, noise in zip((turn, shift), self.noise, strict=True):
            off = (off / noise).clip(-3, 3)
            product = (off[:, 1:] * off[:, :-1])[pairs].sum()
            alike = np.clip(product / max(1e-9, np.square(off[:, 1:])[pairs].sum()), 0, 0.99)
            shares.append(np.maximum((1 - alike) / (1 + alike), 1 / self.count))
        # [N, T * 6], as residuals lie
        self.share = np.tile(np.repeat(np.stack(shares, 1), 3, axis=1), self.used.shape[1])

    def _scaled(self, unknowns: np.ndarray) -> np.ndarray:
        turn, shift = self._off(unknowns)
        both = np.concatenate([turn / self.noise[0], shift / self.noise[1]], -1)
        return (both * self.used[..., None]).ravel()

    def _jacobian(self, unknowns: np.ndarray):
        """By central differences; an episode's residuals depend on its own world alone, so all
        worlds are moved at once.
        """
        first, N = 6 * (not self.given), len(self.count)
        rows = self.used.shape[1] * 6
        free = np.flatnonzero(self.free)

        def slope(columns) -> np.ndarray:
            step = np.zeros(len(unknowns))
            step[columns] = _STEP
            ahead, behind = self._scaled(unknowns + step), self._scaled(unknowns - step)
            return ((ahead - behind) / (2 * _STEP)).reshape(N, rows)

        mount = [slope([i]) for i in range(first)]
        world = [slope(slice(first + i, None, 7)) for i in range(7)] if len(free) else []
        if len(unknowns) <= _DENSE:
            out = np.zeros((N, rows, len(unknowns)))
            for i, column in enumerate(mount):
                out[..., i] = column
            for i, column in enumerate(world):
                out[free, :, first + 7 * np.arange(len(free)) + i] = column[free]
            return out.reshape(N * rows, -1)
        blocks = block_diag([np.stack([c[n] for c in world], 1) for n in range(N)])
        keep = np.repeat(self.free, 7)
        shared = np.stack([column.ravel() for column in mount], 1) if mount else None
        return hstack(([] if shared is None else [csr_matrix(shared)]) + [blocks.tocsc()[:, keep]])

    def _informations(self) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """(of the mount alone [6, 6], mount and world [6, 7] each, world alone [7, 7] each)."""
        J, rows = csr_matrix(self.result.jac), self.used.shape[1] * 6
        first = 6 * (not self.given)
        own, cross, world = np.zeros((first, first)), [], []
        order = {n: k for k, n in enumerate(np.flatnonzero(self.free).tolist())}
        for n in range(len(self.count)):
            block = J[n * rows : (n + 1) * rows]
            A = block[:, :first].toarray()
            share = self.share[n][:, None]
            own += A.T @ (share * A)
            if n in order:
                at = first + 7 * order[n]
                B = block[:, at : at + 7].toarray()
                cross.append(A.T @ (share * B))
                world.append(B.T @ (share * B))
        return own, cross, world

    def mount_errors(self) -> tuple[tuple[float, np.ndarray], tuple[float, np.ndarray]]:
        """(degrees, axis) and (metres, direction), in the hand's frame, where it is least told.

        Standard errors from the fit's Hessian, each world's unknowns eliminated.
        """
        own, cross, world = self.information
        left = own.copy()
        for c, w in zip(cross, world, strict=True):
            left -= c @ np.linalg.pinv(w, rcond=1e-9, hermitian=True) @ c.T
        unit = 1 / np.sqrt(np.diag(own) + 1e-9)
        shares, ways = np.linalg.eigh(unit[:, None] * left * unit)
        shares = np.where(shares > _NOTHING, shares, _NOTHING**2)
        spread = unit[:, None] * (ways / shares) @ ways.T * unit
        turn, turned = np.linalg.eigh(spread[:3, :3])
        shift, shifted = np.linalg.eigh(spread[3:, 3:])
        axis = self.R @ turned[:, -1]  # the rotation's unknowns are in the camera's frame
        return (np.degrees(turn[-1] ** 0.5), axis), (shift[-1] ** 0.5, shifted[:, -1])

    def refuse(self, turn: tuple[float, np.ndarray], shift: tuple[float, np.ndarray]) -> None:
        """Untold where the mount's errors are too large."""
        bad = []
        if turn[0] > MAX_ROTATION:
            bad.append(
                f"its rotation about {_direction(turn[1])} (standard error {turn[0]:.3g} deg)"
            )
        if shift[0] > MAX_OFFSET:
            bad.append(f"its place along {_direction(shift[1])} (standard error {shift[0]:.3g} m)")
        if bad:
            raise Untold(
                f"the motions do not tell the mount: {' and '.join(bad)} in the hand's axes; more "
                "episodes, or ones in which the hand turns about other axes, would"
            )


def _direction(v: np.ndarray) -> str:
    v = v * np.sign(v[np.argmax(np.abs(v))])
    return "[" + ", ".join(f"{x:.2f}" for x in v.round(2) + 0.0) + "]"


def _thinned(track: Track) -> tuple[np.ndarray, np.ndarray]:
    """Finite frames of hand and camera, at most `MOST_FRAMES`, in float64."""
    eef, camera = (np.asarray(x, np.float64) for x in (track.eef, track.camera))
    if eef.shape != camera.shape or eef.shape[1:] != (4, 4):
        raise ValueError(f"poses of the hand {eef.shape} and the camera {camera.shape} differ")
    finite = np.flatnonzero(np.isfinite(eef).all((1, 2)) & np.isfinite(camera).all((1, 2)))
    if len(finite) > MOST_FRAMES:
        finite = finite[np.linspace(0, len(finite) - 1, MOST_FRAMES).round().astype(int)]
    return eef[finite], camera[finite]
