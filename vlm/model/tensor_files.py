"""Named tensors from files that others wrote: safetensors, or a pickle of tensors from which nothing is ever run."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from autoseg.errors import UserError, all_of
from autoseg.records import file_sha256, read_json, replacing

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
WEIGHT_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors",
    "model.safetensors.index.json", "open_clip_pytorch_model.bin", "pytorch_model.bin",
)
"""Names under which open_clip and transformers store weights, in the order in which they are looked for."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file, of the shards of a .safetensors.index.json, or of a pickle of tensors.

    Raises
    ------
    UserError : the file is absent or damaged, holds anything but tensors, or would run code when unpickled.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; weights were expected there.")
    if path.name.endswith(".index.json"):
        return {name: value for part in _parts(path) for name, value in _read_safetensors(part).items()}
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return tensors_of(load_pickle(path), path)


def load_pickle(path: Path) -> object:
    """The content of a torch file with torch's restricted unpickler; UserError where it holds more than data."""
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle break the unpickler in any way
        raise _refused(path, error) from None
    return content


def tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a loaded checkpoint: of its `state_dict` where it has one; without "module." before each name."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no named tensors; a state dict was expected.")
    if wrong := [str(name) for name, value in content.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{path} holds no state dict: {wrong[0]} is no tensor ({len(wrong)} such entries).\n"
                        "Give the file that holds the weights.")
    prefix = "module." if all(str(name).startswith("module.") for name in content) else ""
    return {str(name).removeprefix(prefix): value for name, value in content.items()}


def weights_file(folder: Path) -> Path:
    """The file of a folder that holds its weights; UserError where there is none, or several of unusual names."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", *PICKLED))
    if len(found) != 1:
        several = f"{len(found)} files could be weights ({', '.join(path.name for path in found)})"
        raise UserError(f"{folder}: {several if found else 'no weights are there'}.\n"
                        f"One of these was expected: {', '.join(WEIGHT_FILES)}.")
    return found[0]


def weights_sha256(path: Path) -> str:
    """SHA-256 of a weights file; of the hashes of its parts where it is an index of shards."""
    if not path.name.endswith(".index.json"):
        return file_sha256(path)
    return hashlib.sha256("".join(file_sha256(part) for part in _parts(path)).encode()).hexdigest()


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write a safetensors file under a temporary name, then rename; returns its SHA-256."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # Not `save_file`: it makes files that only their owner may read.
    content = safetensors.torch.save(plain, metadata={"format": "pt"})
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def misfits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """One line for every tensor that is missing, that there is no place for, or that has another shape."""
    missing = [f"{name}: missing" for name in expected if name not in given]
    unexpected = [f"{name}: the model has no such tensor" for name in given if name not in expected]
    misshapen = [f"{name}: shape {tuple(given[name].shape)}, expected {tuple(value.shape)}"
                 for name, value in expected.items() if name in given and given[name].shape != value.shape]
    return missing + unexpected + misshapen


def load_exactly(module: nn.Module, given: Mapping[str, Tensor], source: str, remedy: str) -> int:
    """Copy tensors into a module that has exactly these; returns their number. UserError listing all that differ."""
    expected = module.state_dict()
    if problems := misfits(expected, given):
        raise all_of(problems, f"{source} does not fit the model; tensors that differ: {len(problems)}.", remedy)
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(given[name])
    return len(expected)


def grouped(names: Iterable[str]) -> tuple[str, ...]:
    """Names of tensors by their first part, with how many there are: ("cls (7)", "pooler (2)")."""
    return tuple(f"{first} ({count})" for first, count in sorted(Counter(n.split(".")[0] for n in names).items()))


def _refused(path: Path, error: Exception) -> UserError:
    """Why the restricted unpickler did not load a file, and what to do. Nothing in the file was run."""
    try:
        named = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # no zip of torch's, so nothing can be said about its content
        named = []
    if named:
        what = ", ".join(named[:8])
        return UserError(f"{path} holds more than tensors and numbers, so it was not unpickled: {what}.\n"
                         "Unpickling such objects can run any code. If you trust the file, load it yourself and save "
                         "its state dict alone: torch.save(state_dict, FILE).")
    # torch's own words would advise to load it with weights_only=False, which runs what is in it.
    return UserError(f"{path} cannot be read as tensors ({type(error).__name__}): it is cut short, or no file of torch."
                     "\n"
                     "A file that torch.save wrote from a state dict was expected; copy it again from its source.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}.\nCopy it again from its source.") from None
    return tensors


def _parts(index: Path) -> list[Path]:
    content = read_json(index)
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named:
        raise UserError(f"{index} names no shards (`weight_map`). Copy it again from its source.")
    parts = [index.parent / Path(name).name for name in sorted(set(map(str, named.values())))]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise UserError(f"{index} names files that are not there: {', '.join(missing)}.\n"
                        "Copy the complete folder again.")
    return parts
