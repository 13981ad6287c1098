"""UniMed-CLIP's released checkpoints as a model of ours: safely unpickled, strictly mapped."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoseg.errors import UserError, all_of
from autoseg.records import file_sha256
from vlm.model.clip import ClipModel, build_network, refuse_other_words
from vlm.model.records import ClipConfig, ImportFacts, ModelRecord, PreprocessConfig
from vlm.model.tensor_files import grouped, load_exactly, load_pickle, misfits, tensors_of
from vlm.model.text_folder import find_text_folder
from vlm.model.tokenizer import Tokenizer

LICENCE = "CC BY-NC 4.0"
"""Of the released weights and of the MetaCLIP weights that they started from: no commercial use."""

TEXT_PREFIX = "text_encoder."
IGNORED = "text.transformer.embeddings.position_ids"
"""A buffer that older versions of transformers stored: the numbers 0, 1, 2, …"""

_SCALAR_TYPES = (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.bool_)


def numpy_scalars() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """What torch's restricted unpickler needs in addition for numbers of numpy, under numpy 1's and numpy 2's names.

    None of it runs anything: a type of number, and a function that makes one number of that type from bytes.
    """
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    types = {type(np.dtype(one)) for one in _SCALAR_TYPES}
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *types]


def read_released(path: Path) -> tuple[dict[str, Tensor], dict[str, str | int | float | bool | None]]:
    """Tensors of a released checkpoint under our names, and the plain numbers and words that lie beside them.

    Raises
    ------
    UserError : no such file, no checkpoint, or one that holds more than tensors, containers, numbers and words.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; a checkpoint of UniMed-CLIP was expected there.")
    with torch.serialization.safe_globals(numpy_scalars()):
        content = load_pickle(path)
    tensors = {our_name(name): value for name, value in tensors_of(content, path).items()}
    return tensors, _facts(content)


def our_name(name: str) -> str:
    """A released tensor's name in open_clip: the text tower is called text there."""
    return f"text.{name.removeprefix(TEXT_PREFIX)}" if name.startswith(TEXT_PREFIX) else name


def import_released(
    path: Path, config: ClipConfig, text: str, preprocess: PreprocessConfig | None = None
) -> ClipModel:
    """The model of a released checkpoint.

    Parameters
    ----------
    config : its architecture.
    text : folder, hub id or "package:NAME" with the config and tokenizer of the text tower; its weights are not read.

    Raises
    ------
    UserError : see `read_released`; or tensors that do not fit the architecture, each of them listed.
    """
    tensors, facts = read_released(path)
    ignored = tensors.pop(IGNORED, None)
    folder = find_text_folder(text)
    tokenizer = Tokenizer(folder, config.text_cfg.context_length)
    network = build_network(config, folder)
    refuse_other_words(network.get_submodule("text").config, tokenizer)
    if problems := misfits(network.state_dict(), tensors):
        raise all_of(problems, f"{path} does not fit the architecture; tensors that differ: {len(problems)}.",
                     f"{_described(tensors)}\nChoose the architecture with --config and its text tower with --text.")
    load_exactly(network, tensors, str(path), "")
    record = ModelRecord(
        name=path.stem, vocabulary_sha256=tokenizer.vocabulary_sha256(), image_size=config.vision_cfg.image_size,
        preprocess=preprocess or PreprocessConfig(), context_length=config.text_cfg.context_length,
        dimension=config.embed_dim, licence=LICENCE,
        imported=ImportFacts(file=path.name, sha256=file_sha256(path), tensors=len(tensors), facts=facts,
                             left_out=() if ignored is None else grouped([IGNORED])))
    return ClipModel(network.eval(), config, record, tokenizer)


def _facts(content: object) -> dict[str, str | int | float | bool | None]:
    """Plain values at the checkpoint's top, numbers of numpy as Python's; what JSON has no number for, as a word."""
    if not isinstance(content, Mapping) or "state_dict" not in content:
        return {}
    plain = {str(key): value.item() if isinstance(value, np.generic) else value for key, value in content.items()}
    return {key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in plain.items() if isinstance(value, str | int | float | bool | None)}


def _described(tensors: Mapping[str, Tensor]) -> str:
    """What a checkpoint's own shapes say about its towers."""
    patches = tensors.get("visual.conv1.weight")
    words = tensors.get("text.transformer.embeddings.word_embeddings.weight")
    vision = f"width {patches.shape[0]}, patches of {patches.shape[-1]} pixels" if patches is not None else "unknown"
    text = f"width {words.shape[1]}, {words.shape[0]} words" if words is not None else "unknown"
    return f"The checkpoint's vision tower: {vision}; its text tower: {text}."
