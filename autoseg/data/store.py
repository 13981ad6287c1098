"""The store of preprocessed cases on disk: compressed arrays laid out for patch reads, written atomically.

A store is a folder `run/preprocessed/<configuration>/<hash8>/` with, per case, `<id>.b2nd` (image),
`<id>.labels.b2nd`, `<id>.foreground.npy` and, written last, `<id>.json` (a `StoredCase`); `store.json` (the
`StoreRecord`, whose hash names the folder) is written when every case is in. Nothing here is ever pickled.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Integer
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from autoseg.data.intensity import mean_and_std
from autoseg.errors import UserError
from autoseg.records import content_hash, read_record, replacing, storage_error, write_record
from autoseg.schema import StoredCase, StoreRecord

# blosc2 is slow to import, and a prediction has no store: only who reads or writes arrays waits for it.

STORE_FILE = "store.json"
SHARED = {"3d_cascade_fullres": "3d_fullres"}
"""Configurations that see the cases as another one does."""
IMAGE_ENDING, LABELS_ENDING, FOREGROUND_ENDING, RECORD_ENDING = (
    ".b2nd", ".labels.b2nd", ".foreground.npy", ".json")  # fmt: skip
CHUNK_VOXELS = 64**3  # a chunk is about 64 x 64 x 64 voxels, or a part of one slice where patches are 2-D
CHUNK_SIDE_IN_SLICE = 256
BLOCK_BYTES = 128 * 1024  # a block is decompressed as a whole; it should fit a core's cache
LEFTOVER_AGE_SECONDS = 3600
FOREGROUND_SEED = 1234
FOREGROUND_VOXELS_PER_LABEL = 10_000
USUAL_ROUNDING, LARGEST_ROUNDING = 1e-3, 1e-2  # of a channel's std, for storing it in half precision


@dataclass(frozen=True)
class Store:
    """An open store: its folder, what shaped it, and its cases by identifier.

    `previous`: of a cascade, by case the first stage's mask on the stored grid (`autoseg.data.previous_masks`).
    """

    folder: Path
    record: StoreRecord
    cases: dict[str, StoredCase]
    previous: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseArrays:
    """One stored case, in plan order.

    Attributes
    ----------
    image : (channel, z, y, x) float16 or float32: blosc2.NDArray (slicing decompresses) or np.ndarray.
    labels : (z, y, x) uint8 or int16, internal labels: likewise.
    foreground : int32 (voxel, 3), rows as `info.foreground_offsets` says; memory-mapped or in memory.
    previous : of a cascade, the first stage's mask as internal labels, likewise; else None.
    """

    image: Any
    labels: Any
    foreground: NDArray[np.int32]
    info: StoredCase
    previous: Any = None


# ---------------------------------------------------------------- opening
def store_folder(run: Path, configuration: str, record: StoreRecord) -> Path:
    """Where the store of `record` lies in a run folder; a cascade shares that of its grid."""
    return run / "preprocessed" / SHARED.get(configuration, configuration) / content_hash(record.facts)


def open_store(folder: Path) -> Store:
    """The store in `folder`; UserError if it is absent or preprocessing has not finished."""
    hint = "Preprocessing has not finished. Run `autoseg plan` again; finished cases are kept."
    record = read_record(StoreRecord, folder / STORE_FILE, hint)
    files = sorted(path for path in folder.glob(f"*{RECORD_ENDING}") if path.name != STORE_FILE)
    cases = [read_record(StoredCase, path, hint) for path in files if not path.name.startswith(".")]
    return Store(folder, record, {case.id: case for case in cases})


def open_case(store: Store, case_id: str) -> CaseArrays:
    """One case, memory-mapped: slicing `image` or `labels` reads and decompresses the blocks it touches."""
    info = _info(store, case_id)
    return CaseArrays(
        _mapped(store.folder / f"{case_id}{IMAGE_ENDING}"),
        _mapped(store.folder / f"{case_id}{LABELS_ENDING}"),
        np.load(store.folder / f"{case_id}{FOREGROUND_ENDING}", mmap_mode="r", allow_pickle=False),
        info,
        _mapped(store.previous[case_id]) if case_id in store.previous else None,
    )


def open_unlabelled(store: Store, case_id: str) -> CaseArrays:
    """One case's image alone, memory-mapped: no file that was made from labels is opened.

    `labels` are 1 everywhere, take no memory and say one thing: a patch's voxels where they read 0 lie outside the
    image. There is no foreground.
    """
    info = _info(store, case_id).model_copy(update={"class_counts": (), "foreground_offsets": (0,)})
    image = _mapped(store.folder / f"{case_id}{IMAGE_ENDING}")
    nothing = np.empty((0, 3), np.int32)
    return CaseArrays(image, np.broadcast_to(np.ones((), np.uint8), image.shape[1:]), nothing, info)


def in_memory(mapped: CaseArrays) -> CaseArrays:
    """The arrays of an opened case, decompressed into memory (types as stored)."""
    previous = None if mapped.previous is None else mapped.previous[:]
    return CaseArrays(mapped.image[:], mapped.labels[:], np.array(mapped.foreground), mapped.info, previous)


def array_bytes(case: CaseArrays) -> int:
    """Bytes that an opened case's voxels take in memory once decompressed."""
    arrays = [case.image, case.labels, *([] if case.previous is None else [case.previous])]
    return sum(int(np.prod(array.shape)) * array.dtype.itemsize for array in arrays)


def _info(store: Store, case_id: str) -> StoredCase:
    if case_id not in store.cases:
        raise UserError(
            f"{store.folder}: case {case_id!r} is not among the {len(store.cases)} preprocessed cases.\n"
            "Run `autoseg plan` again so that every case of the dataset is preprocessed."
        )
    return store.cases[case_id]


def _mapped(path: Path) -> Any:
    import blosc2

    try:
        return blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
    except (FileNotFoundError, RuntimeError) as error:
        raise UserError(
            f"{path} cannot be read: {error}.\nRemove {path.parent} and run `autoseg plan` again."
        ) from error


# ---------------------------------------------------------------- writing
def write_case(
    folder: Path,
    image: Float32[np.ndarray, "channel z y x"],
    labels: Integer[np.ndarray, "z y x"],
    foreground: Int32[np.ndarray, "voxel 3"],
    info: StoredCase,
    *,
    in_slices: bool,
) -> None:
    """Write a case so that a kill at any moment leaves either all of it or nothing that counts.

    `in_slices`: patches are 2-D, so chunks are parts of single slices. UserError when the disk is full or
    the folder is not writable.
    """
    _forget(folder, info.id)
    write_array(folder / f"{info.id}{LABELS_ENDING}", labels, in_slices)
    with replacing(folder / f"{info.id}{FOREGROUND_ENDING}") as temporary, temporary.open("wb") as stream:
        np.save(stream, foreground, allow_pickle=False)
    write_image(folder, image, info, in_slices=in_slices)


def write_image(
    folder: Path, image: Float32[np.ndarray, "channel z y x"], info: StoredCase, *, in_slices: bool
) -> None:
    """Write the image of a case, and its record last; as `write_case`, for a case without labels."""
    _forget(folder, info.id)
    half = loses_nothing_in_half(image)
    write_array(folder / f"{info.id}{IMAGE_ENDING}", image.astype(np.float16) if half else image, in_slices)
    write_record(info, folder / f"{info.id}{RECORD_ENDING}")


def _forget(folder: Path, case_id: str) -> None:
    """Without its record a case does not count as stored."""
    path = folder / f"{case_id}{RECORD_ENDING}"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error


def is_stored(folder: Path, case_id: str, inputs: Sequence[tuple[str, int, int]], labelled: bool = True) -> bool:
    """Whether the store holds this case, made from exactly these inputs; its image alone will do unless `labelled`."""
    path = folder / f"{case_id}{RECORD_ENDING}"
    endings = (IMAGE_ENDING, LABELS_ENDING, FOREGROUND_ENDING) if labelled else (IMAGE_ENDING,)
    arrays = [folder / f"{case_id}{ending}" for ending in endings]
    if not all(file.is_file() for file in (path, *arrays)):
        return False
    try:
        return read_record(StoredCase, path).inputs == tuple(inputs)
    except UserError:  # a record that cannot be read is a case that is not there: it is made again
        return False


def lost_cases(folder: Path, ids: Iterable[str]) -> tuple[str, ...]:
    """The stored cases other than `ids`: those that the dataset no longer has, sorted."""
    names = (path.name for path in folder.glob(f"*{RECORD_ENDING}"))
    stored = {name.removesuffix(RECORD_ENDING) for name in names if name != STORE_FILE and name[0] != "."}
    return tuple(sorted(stored - set(ids)))


def remove_leftovers(folder: Path, ids: Iterable[str]) -> None:
    """Delete what a run that was killed left half-written, and the lost cases.

    Younger files than `LEFTOVER_AGE_SECONDS` stay: another process may be writing them now.
    """
    for path in folder.glob(".*-*"):
        with suppress(FileNotFoundError):  # another process finished or removed it
            if time.time() - path.stat().st_mtime > LEFTOVER_AGE_SECONDS:
                path.unlink()
    for case_id in lost_cases(folder, ids):
        for ending in (RECORD_ENDING, IMAGE_ENDING, LABELS_ENDING, FOREGROUND_ENDING):
            (folder / f"{case_id}{ending}").unlink(missing_ok=True)


def loses_nothing_in_half(image: Float32[np.ndarray, "channel z y x"]) -> bool:
    """Whether float16 keeps every channel as far as training can see.

    The root mean square of the rounding error is at most 0.001 of the channel's std and the largest at most
    0.01 of it: an outlier of 30 standard deviations may be off by 0.01, no typical voxel by 0.001. Training
    itself computes in half precision on a GPU.
    """
    for channel in image:
        _, std = mean_and_std(channel)
        largest, squares = 0.0, 0.0
        for part in channel:
            with np.errstate(over="ignore"):
                error = np.abs(part - part.astype(np.float16).astype(np.float32))
            largest = max(largest, float(error.max(initial=0)))
            squares += float(np.square(error, dtype=np.float64).sum())
        usual = float(np.sqrt(squares / max(channel.size, 1)))
        if not (usual <= USUAL_ROUNDING * std and largest <= LARGEST_ROUNDING * std):
            return False
    return True


def chunks_and_blocks(
    shape: Sequence[int], item_bytes: int, *, in_slices: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk and block shape for an array (…, z, y, x) that is read in patches; leading axes get 1.

    A chunk holds about 64³ voxels, as near to a cube as the array allows; with `in_slices`, one slice and up
    to 256 x 256. A block is a chunk halved along its longest axis until it takes at most 128 KiB.
    """
    limits = [1 if in_slices else shape[-3], shape[-2], shape[-1]]
    side = CHUNK_SIDE_IN_SLICE if in_slices else 1
    chunk = [min(limit, side) for limit in limits]
    while not in_slices and any(c < limit for c, limit in zip(chunk, limits, strict=True)):
        axis = min((a for a in range(3) if chunk[a] < limits[a]), key=lambda a: chunk[a])
        grown = list(chunk)
        grown[axis] = min(limits[axis], 2 * chunk[axis])
        if np.prod(grown) > CHUNK_VOXELS:
            break
        chunk = grown
    block = list(chunk)
    while np.prod(block) * item_bytes > BLOCK_BYTES:
        axis = max(range(3), key=lambda a: block[a])
        block[axis] = -(-block[axis] // 2)
    leading = (1,) * (len(shape) - 3)
    return (*leading, *chunk), (*leading, *block)


def write_array(path: Path, array: np.ndarray, in_slices: bool) -> None:
    """Write an array (…, z, y, x) atomically; UserError when the disk is full.

    Compressed in memory first, so that a full disk shows as an OSError from one plain write.
    """
    import blosc2

    chunks, blocks = chunks_and_blocks(array.shape, array.dtype.itemsize, in_slices=in_slices)
    # Tried on MR, CT and labels: LZ4 writes five times faster than LZ4HC for a tenth more bytes, and reads
    # twice as fast as ZSTD; bits of labels are mostly constant, bits of noisy intensities are not.
    filters = [blosc2.Filter.SHUFFLE if array.dtype.kind == "f" else blosc2.Filter.BITSHUFFLE]
    compression = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": filters, "nthreads": 1}
    packed = blosc2.asarray(np.ascontiguousarray(array), chunks=chunks, blocks=blocks, cparams=compression)
    with replacing(path) as temporary:
        temporary.write_bytes(packed.to_cframe())


# ---------------------------------------------------------------- foreground
def sample_foreground(
    labels: Integer[np.ndarray, "z y x"], label_count: int, case_id: str, ignore: int | None = None
) -> tuple[NDArray[np.int32], tuple[int, ...], tuple[int, ...]]:
    """Voxels around which training may centre patches, the same for the same case at every run.

    Per label at most 10,000 voxels, drawn without replacement (nnU-Net keeps at least 1 % of a label, without
    an upper bound; ten thousand centres per case are as good for training and keep the file small).

    Parameters
    ----------
    label_count : labels 0 … label_count − 1 exist; 0 is background.
    ignore : the internal ignore label; then the last rows are voxels of all other labels, background included.

    Returns
    -------
    foreground : int32 (voxel, 3), sorted by label, within a label by position.
    offsets : `StoredCase.foreground_offsets`.
    class_counts : `StoredCase.class_counts`.
    """
    digest = hashlib.sha256(case_id.encode()).digest()
    rng = np.random.default_rng([FOREGROUND_SEED, int.from_bytes(digest[:8], "little")])
    boxes = find_objects(labels, max_label=label_count - 1)
    rows: list[NDArray[np.int32]] = []
    counts = []
    for label, box in enumerate(boxes, start=1):
        if box is None:
            found, kept = 0, np.empty((0, 3), np.int32)
        else:
            found, kept = _some_voxels(labels[box] == label, [side.start for side in box], rng)
        rows.append(kept)
        counts.append(found)
    known = int(labels.size) if ignore is None else int(np.count_nonzero(labels != ignore))
    if ignore is not None:
        rows.append(_some_voxels(labels != ignore, (0, 0, 0), rng)[1])
    offsets = np.cumsum([0, *(len(kept) for kept in rows)])
    foreground = np.concatenate(rows) if rows else np.empty((0, 3), np.int32)
    return (
        foreground,
        tuple(int(offset) for offset in offsets),
        (known - sum(counts), *counts),
    )


def _some_voxels(
    mask: Bool[np.ndarray, "z y x"], corner: Sequence[int], rng: np.random.Generator
) -> tuple[int, NDArray[np.int32]]:
    """How many voxels a mask has, and at most 10,000 of them by position; `corner`: the mask's place in the case."""
    flat = np.flatnonzero(mask)
    found = len(flat)
    if found > FOREGROUND_VOXELS_PER_LABEL:
        flat = np.sort(rng.choice(flat, FOREGROUND_VOXELS_PER_LABEL, replace=False, shuffle=False))
    return found, (np.stack(np.unravel_index(flat, mask.shape), axis=1) + corner).astype(np.int32)
