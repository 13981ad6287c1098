"""Embeddings of a set's images, computed once for a model and the same image files."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from PIL import Image
from torch import Tensor

from autoseg.errors import UserError, all_of
from autoseg.progress import progress
from autoseg.records import replacing
from vlm.corpus.image_files import BadImage, ImageFile
from vlm.corpus.images import encode_image, open_source_bytes
from vlm.corpus.pictures import eight_bits, opened_picture
from vlm.corpus.volumes import volume_kind

IMAGES_PER_BATCH = 64
BATCHES_AHEAD = 2
"""Batches that are read and resized while one is embedded."""
MOST_READERS = 8
PROBE_SIZE = (83, 61)


class ImageTextEmbedder(Protocol):
    """What is asked of a model (`vlm.model.embedding.Embedder` is one). Vectors are of unit length, on the CPU.

    identity : SHA-256 of the weights; "" for weights that lie in no file, whose embeddings are never kept.
    architecture : digits of what is computed with them.
    """

    @property
    def identity(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def record(self) -> Any: ...
    @property
    def transform(self) -> Any: ...
    def embed_pixels(self, pixels: Float[Tensor, "image 3 y x"]) -> Float[Tensor, "image dimension"]: ...
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "text dimension"]: ...
    def count_truncated(self, texts: Sequence[str]) -> int: ...


@dataclass(frozen=True)
class Features:
    """vectors : unit length, of the images that could be opened. opened : of all. problems : of the others, a line
    each, with the file's name below its root. identity : hash of the image files' names and contents."""

    vectors: Float32[np.ndarray, "opened dimension"]
    opened: Bool[np.ndarray, " image"]
    problems: tuple[str, ...]
    identity: str


def image_features(
    embedder: ImageTextEmbedder, name: str, files: Sequence[ImageFile], cache: Path | None
) -> Features:
    """Embeddings of images, read from `cache` where this model has embedded these files before.

    Parameters
    ----------
    name : of the set, shown while it runs.
    cache : folder of <model>-<images>.safetensors; None: nothing is kept.
    """
    digests, problems = _hash_files(name, files)
    identity = hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()
    path = _cache_path(embedder, identity, cache)
    stored = _read_stored(path) if path is not None else None
    if stored is not None and stored.identity == identity and _is_whole(stored, len(files)):
        return stored
    vectors, opened = _embed(embedder, name, files, problems)
    features = Features(vectors, opened, tuple(problems[index] for index in sorted(problems)), identity)
    if path is not None:
        _store(features, path)
    return features


def text_features(embedder: ImageTextEmbedder, texts: Sequence[str]) -> Float32[np.ndarray, "text dimension"]:
    """Embeddings of sentences; equal ones are embedded once. UserError where they are no numbers."""
    distinct = list(dict.fromkeys(texts))
    places = {text: index for index, text in enumerate(distinct)}
    vectors = embedder.encode_texts(distinct).cpu().numpy().astype(np.float32)
    _refuse_no_numbers(embedder, vectors, "sentences")
    return vectors[[places[text] for text in texts]]


def require_opened(features: Features, name: str, folder: Path) -> None:
    """UserError listing the images below `folder` that could not be opened."""
    if features.problems:
        heading = f"{name}: {len(features.problems)} of {len(features.opened)} images in {folder} cannot be used:"
        raise all_of(features.problems, heading, "Complete the set, or give --available to measure it without them.")


def open_picture(file: ImageFile) -> Image.Image:
    """The picture in 8 bits, as the corpus would store it. BadImage: not there, damaged, not an image."""
    data = open_source_bytes(file.root, file.image)
    if volume_kind(data[:4096]) is not None:
        data = encode_image(data).data
    with opened_picture(data) as picture:
        return eight_bits(picture, None).copy()


def readers() -> int:
    """Threads that read and resize: Pillow lets them run side by side."""
    return min(MOST_READERS, max(1, os.cpu_count() or 1))


def _embed(
    embedder: ImageTextEmbedder, name: str, files: Sequence[ImageFile], problems: dict[int, str]
) -> tuple[Float32[np.ndarray, "opened dimension"], Bool[np.ndarray, " image"]]:
    """Embeddings in the order of the files; what cannot be opened is added to `problems`."""
    opened = np.zeros(len(files), bool)
    parts = []
    positions = [index for index in range(len(files)) if index not in problems]
    with progress(f"embed {name}", len(positions), "images") as bar:
        for batch, pixels in _transformed(embedder, [(index, files[index]) for index in positions]):
            good = [(index, one) for index, one in zip(batch, pixels, strict=True) if not isinstance(one, str)]
            problems |= {index: one for index, one in zip(batch, pixels, strict=True) if isinstance(one, str)}
            if good:
                opened[[index for index, _ in good]] = True
                parts.append(embedder.embed_pixels(torch.stack([one for _, one in good])).cpu().numpy())
            bar.advance(len(batch))
    vectors = np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, 1), np.float32)
    _refuse_no_numbers(embedder, vectors, name)
    return vectors, opened


def _refuse_no_numbers(embedder: ImageTextEmbedder, vectors: Float32[np.ndarray, "row dimension"], what: str) -> None:
    if not np.isfinite(vectors).all():
        raise UserError(f"{what}: the model {embedder.name} gives embeddings that are no numbers.\n"
                        "Its weights are damaged, or it was trained until it diverged; take an earlier one.")


def _transformed(
    embedder: ImageTextEmbedder, jobs: Sequence[tuple[int, ImageFile]]
) -> Iterator[tuple[list[int], list[Tensor | str]]]:
    """(positions, tensors or what is wrong) of batches, read ahead in threads."""
    def read(file: ImageFile) -> Tensor | str:
        try:
            tensor: Tensor = embedder.transform(open_picture(file))
            return tensor
        except BadImage as error:
            return f"{file.image}: {error}"

    batches = [jobs[start : start + IMAGES_PER_BATCH] for start in range(0, len(jobs), IMAGES_PER_BATCH)]
    with ThreadPoolExecutor(readers()) as pool:
        waiting: list[tuple[list[int], list[Future[Tensor | str]]]] = []
        for batch in batches:
            waiting.append(([index for index, _ in batch], [pool.submit(read, file) for _, file in batch]))
            if len(waiting) > BATCHES_AHEAD:
                positions, futures = waiting.pop(0)
                yield positions, [future.result() for future in futures]
        for positions, futures in waiting:
            yield positions, [future.result() for future in futures]


def _hash_files(name: str, files: Sequence[ImageFile]) -> tuple[list[str], dict[int, str]]:
    """(SHA-256 of each file and its name, position → what is wrong)."""
    def digest(file: ImageFile) -> str | BadImage:
        try:
            return hashlib.sha256(file.image.encode() + b"\0" + open_source_bytes(file.root, file.image)).hexdigest()
        except BadImage as error:
            return error

    digests, problems = [], {}
    with ThreadPoolExecutor(readers()) as pool, progress(f"read {name}", len(files), "images") as bar:
        for index, found in enumerate(pool.map(digest, files)):
            bar.advance()
            digests.append(found if isinstance(found, str) else "")
            if isinstance(found, BadImage):
                problems[index] = f"{files[index].image}: {found}"
    return digests, problems


def _cache_path(embedder: ImageTextEmbedder, images: str, cache: Path | None) -> Path | None:
    if cache is None or not embedder.identity:
        return None
    model = hashlib.sha256(
        f"{embedder.identity} {embedder.architecture} {_preprocessing(embedder)}".encode()).hexdigest()
    return cache / f"{model[:16]}-{images[:16]}.safetensors"


def _preprocessing(embedder: ImageTextEmbedder) -> str:
    """What the model's transform makes of a fixed picture: the weights' hash does not say how pictures are resized."""
    rows, columns = np.mgrid[: PROBE_SIZE[1], : PROBE_SIZE[0]]
    pixels = np.stack([rows * 4, columns * 3, (rows * columns) % 251], -1).astype(np.uint8)
    tensor: Tensor = embedder.transform(Image.fromarray(pixels))
    return hashlib.sha256(np.round(tensor.double().numpy(), 3).tobytes()).hexdigest()


def _read_stored(path: Path) -> Features | None:
    """None where there is no such file, or none that can be read: then it is computed again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            said = file.metadata()
            return Features(file.get_tensor("vectors"), file.get_tensor("opened").astype(bool),
                            tuple(line for line in said["problems"].split("\n") if line), said["images"])
    except (SafetensorError, OSError, KeyError, TypeError):
        return None


def _is_whole(features: Features, files: int) -> bool:
    """Whether what was stored holds a vector of numbers for every image that it calls opened."""
    vectors, opened = features.vectors, features.opened
    return bool(opened.shape == (files,) and vectors.ndim == 2 and len(vectors) == opened.sum()
                and len(features.problems) == files - opened.sum() and np.isfinite(vectors).all())


def _store(features: Features, path: Path) -> None:
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        save_file({"vectors": features.vectors, "opened": features.opened.astype(np.uint8)}, temporary,
                  {"images": features.identity, "problems": "\n".join(features.problems)})
