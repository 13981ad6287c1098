"""A cascade's first masks of the training cases, on the second network's grid, kept beside the store of images.

Per case `<id>.previous.b2nd` and, written last, `<id>.previous.json`, which says what it was made from: masks of other
weights, or of an image that has changed, are made anew. They lie in a folder per first model and per fold of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoseg.data.labels import to_internal
from autoseg.data.parallel import map_cases
from autoseg.data.preprocessing import Placement, labels_on_grid
from autoseg.data.store import Store, write_array
from autoseg.data.volume import read_labels
from autoseg.errors import UserError, all_of
from autoseg.geometry import permuted
from autoseg.records import Record, content_hash, file_sha256, read_record, write_record
from autoseg.schema import PreviousStage, StoredCase

PREVIOUS_ENDING, PREVIOUS_RECORD = ".previous.b2nd", ".previous.json"


class PreviousMaskRecord(Record):
    """`<id>.previous.json`.

    Attributes
    ----------
    weights_sha256 : of the fold that made the mask. mask_sha256 : of the mask's file.
    inputs : identity of the source files of the stored case, as in `StoredCase`.
    """

    id: str
    fold: str
    weights_sha256: str
    mask_sha256: str
    inputs: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class MaskSource:
    """A case's mask on its original grid, in the files' values, and the fold of the first model that made it."""

    id: str
    path: Path
    fold: str
    weights_sha256: str


@dataclass(frozen=True)
class PreviousMasks:
    """The first stage's masks of a training's cases.

    Attributes
    ----------
    stage : the model that made them.
    files : of every case, internal labels on the stored grid.
    identity : changes when any mask does.
    """

    stage: PreviousStage
    files: Mapping[str, Path]
    identity: str


def store_previous_masks(
    stage: PreviousStage, sources: Mapping[str, MaskSource], store: Store, folder: Path, workers: int
) -> PreviousMasks:
    """Put every case's mask on the store's grid, where that has not been done.

    Parameters
    ----------
    folder : preprocessed/3d_cascade_fullres of the run.

    Raises
    ------
    UserError : masks that cannot be read, lie on another grid than their image, or hold values that are no labels (all
        reported together); a full disk.
    """
    home = folder / content_hash([store.record.facts, stage.model_dump(mode="json")])
    work = partial(_store_mask, store=store, home=home)
    done = map_cases(work, list(sources.values()), workers, "previous masks")
    if problems := [outcome for outcome in done if isinstance(outcome, str)]:
        raise all_of(problems, f"The masks of {stage.name} ({stage.configuration}) cannot be used:",
                     f"Train that fold anew: autoseg train --name {stage.name} --configuration {stage.configuration} "
                     "--fold … --overwrite.")
    records = [outcome for outcome in done if not isinstance(outcome, str)]
    files = {source.id: _home_of(source, home) / f"{source.id}{PREVIOUS_ENDING}" for source in sources.values()}
    identity = content_hash(sorted((record.id, record.weights_sha256, record.mask_sha256) for record in records))
    return PreviousMasks(stage, files, identity)


def placement_of(case: StoredCase, axes: tuple[int, int, int]) -> Placement:
    """Where the voxels of a stored case lie in its image."""
    return Placement(
        original_shape=case.original_shape, original_spacing=case.original_spacing, crop=case.crop, axes=axes,
        cropped_shape=permuted([stop - start for start, stop in case.crop], axes),
        cropped_spacing=permuted(case.original_spacing, axes), shape=case.shape, spacing=case.spacing,
    )


def _home_of(source: MaskSource, home: Path) -> Path:
    return home / f"fold_{source.fold}"


def _store_mask(source: MaskSource, store: Store, home: Path) -> PreviousMaskRecord | str:
    """Read, place and write one mask; what is wrong with it, if anything."""
    case = store.cases[source.id]
    path = _home_of(source, home) / f"{source.id}{PREVIOUS_RECORD}"
    array = path.with_name(f"{source.id}{PREVIOUS_ENDING}")
    if not source.path.is_file():
        return f"{source.path} is not there; fold {source.fold} was to segment this case"
    record = PreviousMaskRecord(id=source.id, fold=source.fold, weights_sha256=source.weights_sha256,
                                mask_sha256=file_sha256(source.path), inputs=case.inputs)
    if array.is_file() and _recorded(path) == record:
        return record
    try:
        mask = read_labels(source.path).voxels[0]
    except UserError as error:
        return str(error)
    if mask.shape != case.original_shape:
        return f"{source.path} has {mask.shape} voxels (z, y, x); its image has {case.original_shape}"
    try:
        internal = to_internal(mask, tuple(store.record.labels.values()))
    except ValueError as error:
        return f"{source.path}: {error}"
    path.unlink(missing_ok=True)
    write_array(array, labels_on_grid(internal, placement_of(case, store.record.axes)), in_slices=False)
    write_record(record, path)
    return record


def _recorded(path: Path) -> PreviousMaskRecord | None:
    """None where there is no record, or one that cannot be read: the mask is placed again."""
    try:
        return read_record(PreviousMaskRecord, path)
    except UserError:
        return None
