"""From a case as read to what networks see: transpose, crop, normalize, resample, in nnU-Net's order."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Integer
from scipy.ndimage import binary_fill_holes

from autoseg.data.case_memory import preparation_bytes
from autoseg.data.dataset import Case, Dataset
from autoseg.data.integrity import CaseProblems, LoadedCase, load_case, raise_problems
from autoseg.data.intensity import needs_mask, normalize_channel
from autoseg.data.parallel import map_cases
from autoseg.data.resampling import resample_channel, resample_labels
from autoseg.data.store import (
    STORE_FILE,
    is_stored,
    lost_cases,
    remove_leftovers,
    sample_foreground,
    write_case,
    write_image,
)
from autoseg.data.volume import Volume, files_of, read_image
from autoseg.errors import UserError, all_of
from autoseg.geometry import Shape, SpacingMm, permuted, resampled_shape
from autoseg.records import storage_error, write_record
from autoseg.schema import StoredCase, StoreRecord

logger = logging.getLogger("autoseg")
AnyNumber = TypeVar("AnyNumber", int, float)

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Placement:
    """Where prepared voxels lie in the original image: all that the way back needs.

    Attributes
    ----------
    original_shape, original_spacing : of the file, array order (z, y, x); mm.
    crop : per array axis (start, stop) of the box of nonzero voxels.
    axes : array axis at each plan position.
    cropped_shape, cropped_spacing : plan order, before resampling.
    shape, spacing : plan order, after resampling.
    """

    original_shape: Shape
    original_spacing: SpacingMm
    crop: Box
    axes: tuple[int, int, int]
    cropped_shape: Shape
    cropped_spacing: SpacingMm
    shape: Shape
    spacing: SpacingMm


@dataclass(frozen=True)
class PreparedImage:
    """A normalized, resampled image (channel, z, y, x) in plan order, and where it came from."""

    image: Float32[np.ndarray, "channel z y x"]
    placement: Placement


# ---------------------------------------------------------------- one case
def prepare_image(volume: Volume, store: StoreRecord) -> PreparedImage:
    """What a network trained on `store` sees of a volume; UserError if the number of channels differs.

    Works channel by channel: beside the input it holds the result and about two copies of one channel.
    """
    if len(volume.voxels) != len(store.normalization):
        raise UserError(
            f"The image has {len(volume.voxels)} channels; {len(store.normalization)} were expected.\n"
            "Give the channels that the network was trained on, in the order of dataset.json."
        )
    placement = place(volume, store)
    image = _cropped(volume.voxels, placement)
    mask = nonzero_mask(image) if any(needs_mask(how) for how in store.normalization) else None
    result = np.empty((len(image), *placement.shape), np.float32)
    for channel, how in enumerate(store.normalization):
        normalized = normalize_channel(image[channel], mask, how)
        result[channel] = resample_channel(
            normalized, placement.cropped_spacing, placement.shape, placement.spacing
        )
    return PreparedImage(result, placement)


def prepare_case(
    loaded: LoadedCase, store: StoreRecord
) -> tuple[PreparedImage, Integer[np.ndarray, "z y x"]]:
    """A training case: its image as `prepare_image`, its labels (internal, uint8 or int16) on the same grid.

    nnU-Net writes -1 where background lies outside the nonzero mask and turns it back into 0 for training;
    here it stays 0 throughout.
    """
    prepared = prepare_image(loaded.image, store)
    return prepared, labels_on_grid(loaded.labels, prepared.placement)


def labels_on_grid(labels: Integer[np.ndarray, "z y x"], where: Placement) -> Integer[np.ndarray, "z2 y2 x2"]:
    """Internal labels of a whole image (array order) on its prepared grid, cropped and resampled (plan order)."""
    cropped = _cropped(labels[None], where)[0]
    return resample_labels(cropped, where.cropped_spacing, where.shape, where.spacing)


def place(volume: Volume, store: StoreRecord) -> Placement:
    """Where the prepared voxels of a volume will lie; a resampled axis keeps at least one voxel."""
    axes = store.axes
    crop = nonzero_box(volume.voxels)
    cropped_shape = permuted([stop - start for start, stop in crop], axes)
    spacing = permuted(volume.grid.spacing, axes)
    target = tuple(own if mm is None else mm for mm, own in zip(store.spacing, spacing, strict=True))
    shape = tuple(max(1, voxels) for voxels in resampled_shape(cropped_shape, spacing, target))
    original_shape, original_spacing = tuple(volume.voxels.shape[1:]), tuple(volume.grid.spacing)
    return Placement(original_shape, original_spacing, crop, axes, cropped_shape, spacing, shape, target)


def nonzero_box(image: Float32[np.ndarray, "channel z y x"]) -> Box:
    """Per axis (start, stop) of the smallest box holding every voxel that is not 0 in all channels.

    An image of zeros keeps its whole extent, as in nnU-Net.
    """
    # Slice by slice: most images have something in every slice, and no mask of the whole image is needed.
    planes = np.zeros(image.shape[1], bool)
    rows, columns = np.zeros(image.shape[2], bool), np.zeros(image.shape[3], bool)
    for z in range(image.shape[1]):
        mask = (image[:, z] != 0).any(axis=0)
        across = mask.any(axis=0)
        planes[z] = across.any()
        columns |= across
        rows |= mask.any(axis=1)
    z_span, y_span, x_span = (_span(line) for line in (planes, rows, columns))
    return z_span, y_span, x_span


def nonzero_mask(image: Float32[np.ndarray, "channel z y x"]) -> Bool[np.ndarray, "z y x"]:
    """Voxels that are not 0 in any channel, holes filled.

    Cropping first changes nothing: a hole never touches the box around what encloses it.
    """
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return np.asarray(mask if mask.all() else binary_fill_holes(mask), bool)


def _span(line: Bool[np.ndarray, " voxels"]) -> tuple[int, int]:
    filled = np.flatnonzero(line)
    return (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, len(line))


def _cropped(array: np.ndarray, placement: Placement) -> np.ndarray:
    """The box of a (channel, z, y, x) array in plan order, as a view."""
    box = tuple(slice(start, stop) for start, stop in placement.crop)
    return array[(slice(None), *box)].transpose(0, *(axis + 1 for axis in placement.axes))


# ---------------------------------------------------------------- a dataset
def preprocess_dataset(dataset: Dataset, store: StoreRecord, folder: Path, workers: int) -> Path:
    """Fill the store in `folder` with every case of the dataset, and return it.

    Resumes: a case whose record exists and whose files are unchanged (name, bytes, modification time) is
    kept; cases that the dataset no longer has are removed. `store.json` is written when all cases are in.
    Several processes may fill one store at the same time; a complete store is not touched.

    Raises
    ------
    UserError : the disk is full, the folder is not writable, or cases failed their integrity checks (all
        reported together; the sound cases are kept).
    """
    _refuse_our_name(dataset.cases)
    try:
        missing, complete = _make_ready(dataset, folder)
    except OSError as error:
        raise storage_error(error, folder) from error
    if not complete:
        work = partial(_preprocess_case, dataset=dataset, store=store, folder=folder)
        needed = partial(preparation_bytes, store=store)
        outcomes = map_cases(work, missing, workers, "preprocess", needed_bytes=needed)
        problems = [outcome for outcome in outcomes if outcome is not None]
        if problems:
            raise_problems(problems, dataset)
        write_record(store, folder / STORE_FILE)
    logger.info("preprocessed %d cases (%d new) in %s", len(dataset.cases), len(missing), folder)
    return folder


def _refuse_our_name(cases: Sequence[Case]) -> None:
    for case in cases:
        if case.id == "store":
            raise UserError(f'{case.images[0]}: the case is called "store", which is a name of our own. Rename it.')


def _make_ready(dataset: Dataset, folder: Path) -> tuple[list[Case], bool]:
    """The cases that the store lacks, and whether it is complete; if not, it is opened again for writing.

    A complete store is not touched, because other processes may be training on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = [case.id for case in dataset.cases]
    missing = [case for case in dataset.cases if not is_stored(folder, case.id, input_identity(case))]
    complete = not missing and (folder / STORE_FILE).is_file()
    if not complete or lost_cases(folder, ids):
        remove_leftovers(folder, ids)
    if not complete:
        (folder / STORE_FILE).unlink(missing_ok=True)
    return missing, complete


def input_identity(case: Case) -> tuple[tuple[str, int, int], ...]:
    """(name, bytes, modification time in ns) of every file of a case."""
    identity = []
    named = (*case.images, *([case.label] if case.label else []))
    for path in (file for one in named for file in files_of(one)):
        try:
            facts = path.stat()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}. Put the file back, or remove the case.") from error
        identity.append((path.name, facts.st_size, facts.st_mtime_ns))
    return tuple(identity)


def preprocess_images(cases: Sequence[Case], store: StoreRecord, folder: Path, workers: int) -> None:
    """Fill the store in `folder` with the images of cases without labels; as `preprocess_dataset`, it resumes.

    Raises
    ------
    UserError : the disk is full, the folder is not writable, or images cannot be read (all reported together).
    """
    _refuse_our_name(cases)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, [case.id for case in cases])
    except OSError as error:
        raise storage_error(error, folder) from error
    missing = [case for case in cases if not is_stored(folder, case.id, input_identity(case), labelled=False)]
    work, needed = partial(_preprocess_image, store=store, folder=folder), partial(preparation_bytes, store=store)
    outcomes = map_cases(work, missing, workers, "prepare images", "images", needed)
    problems = [problem for problem in outcomes if problem]
    if problems:
        raise all_of(problems, f"{len(problems)} of {len(cases)} images cannot be used:", "Mend or remove these files.")
    write_record(store, folder / STORE_FILE)


def _preprocess_image(case: Case, store: StoreRecord, folder: Path) -> str | None:
    """Read, prepare and store an image; what is wrong with it, if anything."""
    try:
        inputs = input_identity(case)
        prepared = prepare_image(read_image(case.images, len(store.normalization)), store)
    except UserError as error:
        return str(error)
    info = _stored_case(case.id, prepared.placement, inputs, (), (0,))
    write_image(folder, prepared.image, info, in_slices=store.spacing[0] is None)
    return None


def _preprocess_case(case: Case, dataset: Dataset, store: StoreRecord, folder: Path) -> CaseProblems | None:
    """Read, check, prepare and store one case; what its integrity checks found, if anything."""
    inputs = input_identity(case)  # before reading: a file that changes meanwhile is done again next time
    if is_stored(folder, case.id, inputs):  # another process, which trains another fold, was faster
        return None
    loaded = load_case(case, dataset)
    if isinstance(loaded, CaseProblems):
        return loaded
    try:
        prepared, labels = prepare_case(loaded, store)
    except UserError as error:  # intensities that a scheme refuses: reported with the other cases' problems
        return CaseProblems(case.id, (f"{case.images[0]}: {error}",))
    foreground, offsets, counts = sample_foreground(
        labels, len(store.labels), case.id, None if store.ignore is None else len(store.labels)
    )
    info = _stored_case(case.id, prepared.placement, inputs, counts, offsets)
    write_case(folder, prepared.image, labels, foreground, info, in_slices=store.spacing[0] is None)
    return None


def _stored_case(
    case_id: str, where: Placement, inputs: tuple[tuple[str, int, int], ...], class_counts: tuple[int, ...],
    foreground_offsets: tuple[int, ...],
) -> StoredCase:  # fmt: skip
    return StoredCase(
        id=case_id,
        shape=_three(where.shape),
        original_shape=_three(where.original_shape),
        crop=where.crop,
        original_spacing=_three(where.original_spacing),
        spacing=_three(where.spacing),
        class_counts=class_counts,
        foreground_offsets=foreground_offsets,
        inputs=inputs,
    )


def _three(values: Sequence[AnyNumber]) -> tuple[AnyNumber, AnyNumber, AnyNumber]:
    z, y, x = values
    return z, y, x
