"""torch's checkpoint files, which are pickles, read without running anything that they name.

A pickle names functions for its reader to import and call. Here a name only chooses among a few makers of data that
stand in this file: nothing is imported, and a name that is not among them is refused. Makers are frozen, tensors stay
references until they are asked for, and numpy's values become plain numbers or arrays made from bytes, so no method of
torch's or numpy's unpickling is reached either.
"""

import math
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autoseg.errors import UserError

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
NUMBER_KINDS = "biufc"
ADVICE = "Give a checkpoint that nnU-Net v2 itself wrote, from a source that you trust; nothing of this one was run."


# ---------------------------------------------------------------- what a pickle may hold
class StoredValues(NamedTuple):
    """A run of numbers in the file: `key` names its entry, `size` is their number."""

    key: str
    dtype: torch.dtype
    size: int


class StoredTensor:
    """A tensor that is still in the file; `read_tensors` fetches it."""

    __slots__ = ("offset", "shape", "strides", "values")

    def __init__(self, values: StoredValues, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.values, self.offset, self.shape, self.strides = values, offset, shape, strides

    def __setstate__(self, _state: object) -> None:
        raise pickle.UnpicklingError("a tensor brings a state of its own")


class _Mapping(dict[Any, Any]):
    """An ordered dictionary; attributes that a pickle hangs on it (torch's `_metadata`) are dropped."""

    __slots__ = ()

    def __setstate__(self, _state: object) -> None:
        pass


class _NumberType:
    """numpy's dtype of numbers, by its code ("f8"); its pickled state only tells the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_flags: object) -> None:
        if not (isinstance(code, str) and code[:1] in NUMBER_KINDS and code[1:].isdecimal() and len(code) <= 3):
            raise pickle.UnpicklingError(f"numpy values of type {code!r}; numbers were expected")
        self.code, self.order = code, "="

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "=")):
            raise pickle.UnpicklingError("a numpy type of an unknown form")
        self.order = state[1]

    def parse(self, content: object) -> np.ndarray:
        """The numbers in raw bytes."""
        if not isinstance(content, bytes):
            raise pickle.UnpicklingError("numpy values that are no raw numbers")
        return np.frombuffer(content, np.dtype(self.order + self.code))


class StoredArray:
    """A numpy array of numbers; its pickled state is (version, shape, type, is_fortran, bytes)."""

    __slots__ = ("array",)

    def __init__(self, *_arguments: object) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _NumberType)):
            raise pickle.UnpicklingError("a numpy array of an unknown form")
        _, shape, kind, is_fortran, content = state
        self.array = kind.parse(content).reshape(shape, order="F" if is_fortran else "C")


def _rebuild_tensor(values: object, offset: object, shape: object, strides: object, *_rest: object) -> StoredTensor:
    sizes = (offset, *_whole(shape), *_whole(strides))
    if not isinstance(values, StoredValues) or not all(type(size) is int and size >= 0 for size in sizes):
        raise pickle.UnpicklingError("a tensor of an unknown form")
    return StoredTensor(values, offset, _whole(shape), _whole(strides))  # type: ignore[arg-type]


def _whole(sizes: object) -> tuple[int, ...]:
    if not isinstance(sizes, tuple):
        raise pickle.UnpicklingError("a tensor of an unknown form")
    return sizes


def _number(kind: object, content: object) -> int | float | complex | bool:
    values = kind.parse(content) if isinstance(kind, _NumberType) else np.empty(0)
    if values.size != 1:
        raise pickle.UnpicklingError("a numpy number of an unknown form")
    number: int | float | complex | bool = values[0].item()
    return number


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes of an unknown form")
    return text.encode("latin1")


def _device(kind: object = "cpu", index: object = None) -> str:
    return str(kind) if index is None else f"{kind}:{index}"


class _Maker:
    """A callable that a pickle may name; frozen, so that it cannot be changed by a pickle that names it."""

    __slots__ = ("_make",)
    _make: Callable[..., object]

    def __init__(self, make: Callable[..., object]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("a function is to be changed")


_NUMPY = {
    f"{module}.{name}": make
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name, make in (("scalar", _number), ("_reconstruct", StoredArray))
}
MAKERS: dict[str, _Maker] = {
    name: _Maker(make)
    for name, make in {
        "collections.OrderedDict": _Mapping,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch.Size": tuple,
        "torch.device": _device,  # of nnU-Net's `init_args`; a word here
        "numpy.dtype": _NumberType,
        "numpy.ndarray": StoredArray,
        "_codecs.encode": _encode,
        "builtins.set": set,
        "builtins.frozenset": frozenset,
        "builtins.complex": complex,
        **_NUMPY,
    }.items()
}


class _Reader(pickle.Unpickler):
    """Reads the pickle inside a checkpoint; the names it may use are those of MAKERS and of torch's storages."""

    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(BytesIO(content))
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in MAKERS:
            raise UserError(f"{self._path} is a pickle that asks for {full}; tensors, numbers and plain containers "
                            f"were expected.\n{ADVICE}")
        return MAKERS[full]

    def persistent_load(self, reference: object) -> StoredValues:
        match reference:
            case ("storage", torch.dtype() as dtype, str(key), _, int(size)) if size >= 0:
                return StoredValues(key, dtype, size)
        raise pickle.UnpicklingError("a tensor's values are of an unknown form")


# ---------------------------------------------------------------- files
def read_torch_file(path: Path) -> object:
    """The content of a file of `torch.save`: plain containers and values, with a `StoredTensor` for every tensor.

    numpy's scalars become Python's numbers, its arrays a `StoredArray`, and a `torch.device` its name.

    Raises
    ------
    UserError : the file is absent, damaged or of torch's old format (before 1.6), or it asks for any function or
        class but those of tensors, numbers and plain containers; the message names it. Nothing of the file is run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            folder = _folder(archive, path)
            content = archive.read(f"{folder}/data.pkl")
    except (zipfile.BadZipFile, OSError) as error:
        raise _unreadable(error, path) from None
    except (KeyError, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise _damaged(error, path) from None
    try:
        return _Reader(content, path).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle fails in any way it likes, in code that only makes data
        raise _damaged(error, path) from None


def read_tensors(path: Path, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """The tensors by name, on the CPU; those that share their values in the file share them here.

    Raises
    ------
    UserError : the file lacks values that a tensor refers to, or holds another number of them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            folder = _folder(archive, path)
            kept: dict[str, Tensor] = {}
            return {name: _tensor(tensor, archive, folder, kept) for name, tensor in stored.items()}
    except (zipfile.BadZipFile, OSError) as error:
        raise _unreadable(error, path) from None
    except (KeyError, NotImplementedError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise _damaged(error, path) from None


def _tensor(tensor: StoredTensor, archive: zipfile.ZipFile, folder: str, kept: dict[str, Tensor]) -> Tensor:
    values = tensor.values
    if values.key not in kept:
        entry = archive.getinfo(f"{folder}/data/{values.key}")
        if entry.file_size != values.size * values.dtype.itemsize:
            raise pickle.UnpicklingError(f"entry {values.key} has {entry.file_size} bytes; "
                                         f"{values.size * values.dtype.itemsize} were expected")
        raw = bytearray(archive.read(entry))
        kept[values.key] = torch.frombuffer(raw, dtype=values.dtype) if raw else torch.empty(0, dtype=values.dtype)
    held = kept[values.key]
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) and (last >= held.numel() or held.dtype != values.dtype):
        raise pickle.UnpicklingError(f"a tensor of shape {tensor.shape} reaches beyond its {held.numel()} values")
    return torch.as_strided(held, tensor.shape, tensor.strides, tensor.offset)


def _folder(archive: zipfile.ZipFile, path: Path) -> str:
    """The one folder in the archive, with the pickle in it."""
    found = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(found) != 1:
        raise UserError(f"{path} is a zip archive without torch's data.pkl; a checkpoint of nnU-Net v2 was expected.\n"
                        "Copy the file again from where it was trained.")
    order = f"{found[0]}/byteorder"
    if order in archive.namelist() and archive.read(order) != sys.byteorder.encode():
        raise UserError(f"{path} was written on a machine of the other byte order.\n"
                        "Load it there with torch and save it on a machine like this one.")
    return found[0]


def _unreadable(error: Exception, path: Path) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist; a checkpoint was expected.\nName another file or folder.")
    if isinstance(error, OSError):
        return UserError(f"{path} cannot be read: {error.strerror or error}. Check the file and its permissions.")
    with path.open("rb") as stream:
        start = stream.read(16)
    if start.startswith(b"\x80"):
        return UserError(f"{path} is a bare pickle (torch's format before 1.6, or another program's); the zip format "
                         f"that nnU-Net v2 writes was expected.\n{ADVICE}")
    return UserError(f"{path} is not a checkpoint of torch, or only a part of one ({error}).\n"
                     "Copy the file again from where it was trained.")


def _damaged(error: Exception, path: Path) -> UserError:
    reason = str(error) or type(error).__name__
    return UserError(f"{path} is damaged, or no checkpoint of nnU-Net: {reason}.\n"
                     "Copy the file again from where it was trained.")
