"""The images that pretraining may see: those of the training fold, and unlabelled ones that the user adds.

No label is read here, and no validation image is opened, but for being compared with added ones.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.data.dataset import Case
from autoseg.data.parallel import map_cases
from autoseg.data.preprocessing import preprocess_images
from autoseg.data.store import CaseArrays, Store, open_store, open_unlabelled
from autoseg.data.volume import files_of
from autoseg.errors import UserError, all_of
from autoseg.initialization.record import SeenImage
from autoseg.records import content_hash, file_sha256
from autoseg.schema import ConfigurationName, StoreRecord

FEWEST_TO_HOLD_BACK, HELD_BACK_SHARE, MOST_HELD_BACK = 5, 0.1, 8
"""A tenth of the images is kept out and measured on, at most 8; of fewer than 5 images every one is needed."""
MOVE_OUT = "Move them out of the folder: weights that have seen them would make the scores too good."


@dataclass(frozen=True)
class ImageSource:
    """A prepared image: its case in the user's files, and the store that holds it (only this case of it)."""

    case: Case
    store: Store

    @property
    def id(self) -> str:
        """The case's name."""
        return self.case.id

    def open(self) -> CaseArrays:
        """The prepared image, memory-mapped, with background for labels."""
        return open_unlabelled(self.store, self.case.id)


def image_sources(cases: Sequence[Case], store: Store) -> list[ImageSource]:
    """The images of some cases of a store; UserError where one is not in it."""
    absent = [case.id for case in cases if case.id not in store.cases]
    if absent:
        raise UserError(f"{store.folder} lacks {', '.join(absent[:5])}.\nRun `autoseg plan` again.")
    return [ImageSource(case, Store(store.folder, store.record, {case.id: store.cases[case.id]})) for case in cases]


@dataclass(frozen=True)
class InspectedImage:
    """What a pass over an image found.

    Attributes
    ----------
    seen : id and hashes of the files. voxels_sha256 : of the prepared voxels, which a renamed copy shares.
    is_constant : no channel varies. sums, squares : per channel, over all prepared voxels; voxels : their number.
    """

    seen: SeenImage
    voxels_sha256: str
    is_constant: bool
    sums: tuple[float, ...]
    squares: tuple[float, ...]
    voxels: int


@dataclass(frozen=True)
class ImageSet:
    """Images to learn from, images to measure on, and what is known of them.

    Attributes
    ----------
    training : the fold's images but for `held_back`, then the added ones (the last `extra_count`).
    means, deviations : per channel over the voxels of all training images, as networks see them.
    seen : id → hashes, of every image in both.
    """

    training: tuple[ImageSource, ...]
    held_back: tuple[ImageSource, ...]
    extra_count: int
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    seen: Mapping[str, SeenImage]

    def identities(self, sources: Sequence[ImageSource]) -> tuple[SeenImage, ...]:
        """Ids and hashes of some of the images."""
        return tuple(self.seen[source.id] for source in sources)

    @property
    def own(self) -> tuple[ImageSource, ...]:
        """The training fold's images to learn from."""
        return self.training[: len(self.training) - self.extra_count]

    @property
    def extra(self) -> tuple[ImageSource, ...]:
        """The added images."""
        return self.training[len(self.training) - self.extra_count :]


def gather_images(
    training: Sequence[ImageSource], validation: Sequence[ImageSource], extra: Sequence[ImageSource], seed: int,
    workers: int,
) -> ImageSet:
    """The images of a pretraining, each looked at once.

    Raises
    ------
    UserError : an image is the same everywhere; an added image is a copy of one of the fold's.
    """
    found = _inspected([*training, *extra], workers)
    if extra:
        known, added = found[: len(training)], found[len(training) :]
        _refuse_copies(extra, added, known, _inspected(validation, workers) if validation else [])
    constant = [f"{', '.join(map(str, source.case.images))}: every voxel has the same value"
                for source, one in zip((*training, *extra), found, strict=True) if one.is_constant]
    if constant:
        raise all_of(constant, "Nothing can be learned from these images:",
                     "Replace them, or take these cases out of the dataset (or of --extra-images).")
    held_back = hold_back(training, seed)
    measured = {source.id for source in held_back}
    kept = [source for source in training if source.id not in measured]
    means, deviations = _statistics([one for one in found if one.seen.id not in measured])
    return ImageSet(
        training=(*kept, *extra), held_back=held_back, extra_count=len(extra), means=means, deviations=deviations,
        seen={one.seen.id: one.seen for one in found},
    )


def hold_back(training: Sequence[ImageSource], seed: int) -> tuple[ImageSource, ...]:
    """The images to measure on, drawn from the seed; none where images are few."""
    if len(training) < FEWEST_TO_HOLD_BACK:
        return ()
    count = min(MOST_HELD_BACK, max(1, round(HELD_BACK_SHARE * len(training))))
    drawn = np.random.default_rng([seed, len(training)]).choice(len(training), count, replace=False)
    return tuple(training[position] for position in sorted(drawn.tolist()))


def refuse_known(extra: Sequence[Case], training_ids: Sequence[str], validation_ids: Sequence[str]) -> None:
    """UserError where added images bear the names of the fold's validation cases, or of its training cases."""
    leaked = [f"{case.images[0]}: '{case.id}' is a validation case of this fold" for case in extra
              if case.id in set(validation_ids)]
    if leaked:
        raise all_of(leaked, "--extra-images holds images that this fold validates on:", MOVE_OUT)
    known = [f"{case.images[0]}: '{case.id}' is a training case of this fold" for case in extra
             if case.id in set(training_ids)]
    if known:
        raise all_of(known, "--extra-images holds images under names of training cases, which are used anyway:",
                     "Move them out of the folder, or rename them if they show something else.")


def prepare_extra_images(
    cases: Sequence[Case], run: Path, configuration: ConfigurationName, record: StoreRecord, workers: int
) -> list[ImageSource]:
    """Images without labels, prepared like the training images, into a store of their own beside them.

    Raises
    ------
    UserError : images cannot be read (reported together), or the disk is full.
    """
    described = ["images without labels", record.facts, str(cases[0].images[0].parent.resolve())]
    store = run / "preprocessed" / configuration / content_hash(described)
    preprocess_images(cases, record, store, workers)
    return image_sources(cases, open_store(store))


def inspect_image(source: ImageSource) -> InspectedImage:
    """Hashes, sums and sums of squares of a prepared image; every file is read once."""
    image = source.open().image[:]
    digest = hashlib.sha256(f"{image.dtype} {image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    sums, squares, constant = [], [], True
    for channel in image:
        sums.append(float(channel.sum(dtype=np.float64)))
        squares.append(float(sum(np.square(part, dtype=np.float64).sum() for part in channel)))
        constant = constant and bool(channel.min() == channel.max())
    files = [file for path in source.case.images for file in files_of(path)]
    seen = SeenImage(id=source.id, sha256=tuple(file_sha256(file) for file in files))
    return InspectedImage(seen, digest.hexdigest(), constant, tuple(sums), tuple(squares), int(image[0].size))


def _inspected(sources: Sequence[ImageSource], workers: int) -> list[InspectedImage]:
    return map_cases(inspect_image, sources, workers, "look at images", "images")


def _refuse_copies(
    extra: Sequence[ImageSource], found: Sequence[InspectedImage], training: Sequence[InspectedImage],
    validation: Sequence[InspectedImage],
) -> None:  # fmt: skip
    """UserError where an added image has the very voxels of one of the fold's, under whatever name."""
    held_out = {one.voxels_sha256: one.seen.id for one in validation}
    copies = [f"{source.case.images[0]}: the same voxels as validation case '{held_out[one.voxels_sha256]}'"
              for source, one in zip(extra, found, strict=True) if one.voxels_sha256 in held_out]
    if copies:
        raise all_of(copies, "--extra-images holds copies of images that this fold validates on:", MOVE_OUT)
    used = {one.voxels_sha256: one.seen.id for one in training}
    twice = [f"{source.case.images[0]}: the same voxels as training case '{used[one.voxels_sha256]}'"
             for source, one in zip(extra, found, strict=True) if one.voxels_sha256 in used]
    if twice:
        raise all_of(twice, "--extra-images holds copies of training images, which are used anyway:",
                     "Move them out of the folder.")


def _statistics(images: Sequence[InspectedImage]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel over all voxels; 1 where a channel never varies."""
    voxels = sum(image.voxels for image in images)
    means = np.array([image.sums for image in images]).sum(axis=0) / voxels
    variances = np.array([image.squares for image in images]).sum(axis=0) / voxels - means**2
    # What rounding of the sums leaves of a constant channel is no variance.
    varies = variances > np.maximum(1e-12, 1e-14 * means**2)
    deviations = np.where(varies, np.sqrt(np.maximum(variances, 1e-12)), 1.0)
    return tuple(map(float, means)), tuple(map(float, deviations))


def refuse_too_few(images: ImageSet, batch_size: int, is_2d: bool) -> None:
    """UserError where the images to learn from (2-D: their slices) do not fill a batch."""
    count = sum(source.store.cases[source.id].shape[0] if is_2d else 1 for source in images.training)
    if count < batch_size:
        what = "Slices" if is_2d else "Images"
        held = f" (images held back to measure on: {len(images.held_back)})" if images.held_back else ""
        raise UserError(f"{what} to learn from: {count}{held}; a batch holds {batch_size}, and at least as many were "
                        "expected.\nAdd unlabelled ones with --extra-images DIR, pretrain for `--fold all`, "
                        "or take smaller batches (max_batch_size in a preset).")
