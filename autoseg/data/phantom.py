"""An MR-like phantom dataset: two organs that intensity alone cannot tell from their surroundings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial.transform import Rotation

from autoseg.records import replacing, write_json

Points = Float[np.ndarray, "3 z y x"]
Field = Float[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]

LABELS = {"background": 0, "large_organ": 1, "small_organ": 2}
CASE_NAME = "phantom_{:03d}"

# Signal before noise. Both organs, the body wall, the vessel and the decoy share one value.
AIR, TISSUE, ORGAN, DARK_CAPSULE, BRIGHT_CAPSULE = 0.02, 0.40, 0.62, 0.14, 1.0
NOISE, BIAS = 0.04, 0.18
CAPSULE_MM = 3.0


@dataclass(frozen=True)
class Phantom:
    """One case. `image` and `labels` are (z, y, x); `affine` (4, 4) takes file voxels (x, y, z) to RAS mm."""

    image: Float[np.ndarray, "z y x"]
    labels: UInt8[np.ndarray, "z y x"]
    affine: Float[np.ndarray, "4 4"]


def write_phantom_dataset(folder: Path, cases: int, held_out: int, seed: int) -> Path:
    """Write an nnU-Net raw dataset: `cases` in imagesTr and labelsTr, `held_out` in imagesTs and labelsTs.

    The same seed gives the same cases. Returns `folder`. Raises UserError when it cannot be written.
    """
    for index in range(cases + held_out):
        part = "Tr" if index < cases else "Ts"
        phantom = make_phantom(np.random.default_rng((seed, index)))
        name = CASE_NAME.format(index)
        _write_nifti(phantom.image, phantom.affine, folder / f"images{part}" / f"{name}_0000.nii.gz")
        _write_nifti(phantom.labels, phantom.affine, folder / f"labels{part}" / f"{name}.nii.gz")
    manifest = {
        "name": "Phantom",
        "description": "Synthetic MR: two organs among other structures of their signal.",
        "channel_names": {"0": "MR"},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    write_json(manifest, folder / "dataset.json")
    return folder


def make_phantom(rng: np.random.Generator) -> Phantom:
    """A body with two organs in a random pose, of random size, spacing, signal scale, bias field and noise.

    What tells the organs from the rest is shape and neighborhood: a dark capsule surrounds the large organ,
    a bright one the small organ; the decoy is an organ-like blob without a capsule, the wall and the vessel
    have other shapes. All of them have the organs' signal.
    """
    shape = tuple(int(n) for n in rng.integers((22, 37, 37), (25, 41, 41)))
    spacing = np.array((2.5, 1.8, 1.8)) * rng.uniform(0.95, 1.05, 3)
    points = _body_frame(shape, spacing, rng)
    body = _ellipsoid(points, np.zeros(3), rng.uniform((25, 30, 30), (28, 34, 34)), np.eye(3))
    signal = np.where(body < 0, TISSUE, AIR)
    signal[_wall(body, rng)] = ORGAN
    signal[_vessel(points, rng)] = ORGAN

    labels = np.zeros(shape, dtype=np.uint8)
    centers = _centers(rng)
    decoy = _organ(points, centers[2], rng.uniform(6.5, 9.5, 3), rng)
    signal[decoy < 0] = ORGAN
    for value, capsule, center, radii in (
        (1, DARK_CAPSULE, centers[0], rng.uniform(9.5, 13.0, 3)),
        (2, BRIGHT_CAPSULE, centers[1], rng.uniform(7.5, 9.5, 3)),
    ):
        level = _organ(points, center, radii, rng)
        signal[level < CAPSULE_MM] = capsule
        signal[level < 0] = ORGAN
        labels[level < CAPSULE_MM] = 0
        labels[level < 0] = value
    return Phantom(_acquired(signal, rng), labels, _oblique_affine(shape, spacing, rng))


def _body_frame(shape: Sequence[int], spacing: Float[np.ndarray, "3"], rng: np.random.Generator) -> Points:
    """mm coordinates of every voxel in the frame of a body that lies turned and shifted in the image."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    turn = Rotation.from_euler("zyx", rng.uniform((-10, -10, -25), (10, 10, 25)), degrees=True).as_matrix()
    return np.asarray(np.einsum("ij,jzyx->izyx", turn, points - rng.uniform(-2, 2, (3, 1, 1, 1))))


def _centers(rng: np.random.Generator) -> list[Float[np.ndarray, "3"]]:
    """Centers in mm of large organ, small organ and decoy: a third of a turn apart, in either order."""
    start, order = rng.uniform(0, 2 * np.pi), rng.choice((-1, 1))
    places = ((0.0, 10.0), (2.2, 15.5), (4.1, 15.5))
    return [_along(start + order * turn, distance, rng) for turn, distance in places]


def _along(angle: float, distance: float, rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    place = np.array((0.0, distance * np.sin(angle), distance * np.cos(angle)))
    return np.asarray(place + rng.uniform((-4, -1, -1), (4, 1, 1)))


def _organ(
    points: Points, center: Float[np.ndarray, "3"], radii: Float[np.ndarray, "3"], rng: np.random.Generator
) -> Field:
    """Signed mm from the surface of a turned ellipsoid with gentle bumps; negative inside."""
    level = _ellipsoid(points, center, radii, Rotation.random(rng=rng).as_matrix())
    return np.asarray(level + _smooth_field(level.shape, 1.0, rng))


def _ellipsoid(
    points: Points,
    center: Float[np.ndarray, "3"],
    radii: Float[np.ndarray, "3"],
    turn: Float[np.ndarray, "3 3"],
) -> Field:
    """Signed mm from an ellipsoid's surface, to first order: |q| (|q| - 1) / |q / r| with q = p / r."""
    turned = np.einsum("ij,jzyx->izyx", turn, points - center[:, None, None, None])
    relative = turned / radii[:, None, None, None]
    size = np.linalg.norm(relative, axis=0)
    slope = np.linalg.norm(relative / radii[:, None, None, None], axis=0)
    return np.asarray(size * (size - 1) / np.maximum(slope, 1e-6))


def _wall(body: Field, rng: np.random.Generator) -> Mask:
    """A layer under the body's surface, of varying thickness."""
    inner = -rng.uniform(7.5, 9.0) + _smooth_field(body.shape, 0.7, rng)
    return np.asarray((body < -4.0) & (body > inner))


def _vessel(points: Points, rng: np.random.Generator) -> Mask:
    """A bent tube through the body along its first axis."""
    radius, bend, angle = rng.uniform(3.0, 4.5), rng.uniform(-6, 6), rng.uniform(0, 2 * np.pi)
    along = points[0] / 25
    offset = bend * (1 - along**2)
    distance = np.hypot(points[1] - offset * np.sin(angle), points[2] - offset * np.cos(angle))
    return np.asarray((distance < radius) & (np.abs(along) < 1))


def _smooth_field(shape: Sequence[int], amplitude: float, rng: np.random.Generator) -> Field:
    """Smooth random values within about ±amplitude: cubic interpolation of 4 x 4 x 4 draws."""
    draws = rng.uniform(-1, 1, (4, 4, 4))
    field = zoom(draws, [n / 4 for n in shape], order=3, mode="nearest", grid_mode=True)
    return np.asarray(amplitude * field)


def _acquired(signal: Field, rng: np.random.Generator) -> Float[np.ndarray, "z y x"]:
    """What a scanner makes of it: partial volume, bias field, noise of a magnitude image, arbitrary scale."""
    biased = gaussian_filter(signal, 0.45) * np.exp(_smooth_field(signal.shape, BIAS, rng))
    noisy = np.hypot(biased + rng.normal(0, NOISE, signal.shape), rng.normal(0, NOISE, signal.shape))
    return np.asarray(np.round(noisy * rng.uniform(300, 900)), dtype=np.float32)


def _oblique_affine(
    shape: Sequence[int], spacing: Float[np.ndarray, "3"], rng: np.random.Generator
) -> Float[np.ndarray, "4 4"]:
    """File voxels (x, y, z) to RAS mm: an LPS-like volume, some degrees oblique, somewhere in the scanner."""
    turn = Rotation.from_euler("zyx", rng.uniform(-8, 8, 3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag((-1, -1, 1)) @ np.diag(spacing[::-1])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape[::-1]) - 1) / 2 + rng.uniform(-40, 40, 3)
    return affine


def _write_nifti(
    voxels: Float[np.ndarray, "z y x"] | UInt8[np.ndarray, "z y x"],
    affine: Float[np.ndarray, "4 4"],
    path: Path,
) -> None:
    import nibabel

    stored = voxels if voxels.dtype == np.uint8 else voxels.astype(np.int16)
    image = nibabel.Nifti1Image(stored.T, affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as temporary:
        nibabel.save(image, temporary)
