"""Checkpoints are read without running anything of them; what asks for more than data is refused."""

import argparse
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.errors import UserError
from autoseg.interop import pickles
from autoseg.interop.pickles import StoredTensor, read_tensors, read_torch_file

DATA = [
    None, True, 3, 10**30, 2.5, "é", b"\x00\xff", (1, [2, {"a": {3}}]), {1: "one", None: 2}, OrderedDict(a=1), 1 + 2j,
    frozenset({1}),
]  # fmt: skip


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def with_pickle(raw: bytes, path: Path) -> Path:
    """A checkpoint whose pickle is `raw`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", raw)
    return path


def test_plain_data_comes_back(tmp_path: Path) -> None:
    assert read_torch_file(saved(DATA, tmp_path / "x.pth")) == DATA


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_])
def test_numpy_scalars_become_plain_numbers(kind: type, tmp_path: Path) -> None:
    value = kind(1)
    found = read_torch_file(saved(value, tmp_path / "x.pth"))
    assert type(found) is type(value.item()) and found == value


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("code", ["<f8", ">f4", "<i2", "|u1", "|b1"])
def test_numpy_arrays_come_back(code: str, order: str, tmp_path: Path) -> None:
    array = np.array([[0, 1, 2], [3, 4, 5]], code, order=order)
    found = read_torch_file(saved({"a": array}, tmp_path / "x.pth"))
    np.testing.assert_array_equal(found["a"].array, array)


def test_old_numpy_names_are_known(tmp_path: Path) -> None:
    """numpy 1 called its module numpy.core, and the files of 2023 do."""
    raw = pickle.dumps(np.float32(2.5), protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert read_torch_file(with_pickle(raw, tmp_path / "x.pth")) == 2.5


def test_tensors_come_back_as_torch_reads_them(tmp_path: Path) -> None:
    """Views, shared and empty values, parameters, and every type of number."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    base = torch.arange(24.0).reshape(2, 3, 4)
    content = {
        **network.state_dict(), "parameter": network[0].weight, "view": base[1, :, ::2],
        "turned": base.permute(2, 0, 1), "empty": torch.empty(0, 3), "scalar": torch.tensor(7),
        "wide": torch.ones(1, 2).expand(3, 2),
        **{str(dtype): torch.ones(2).to(dtype) for dtype in pickles.STORAGES.values()},
    }  # fmt: skip
    path = saved(content, tmp_path / "x.pth")
    stored = read_torch_file(path)
    assert all(isinstance(value, StoredTensor) for value in stored.values())
    found = read_tensors(path, stored)
    for name, value in torch.load(path, weights_only=True).items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name


def test_a_device_is_a_word(tmp_path: Path) -> None:
    """nnU-Net's trainers save the one that they ran on."""
    assert read_torch_file(saved(torch.device("cuda", 1), tmp_path / "x.pth")) == "cuda:1"


# ---------------------------------------------------------------- what is refused
class Planted:
    """Runs a command when it is unpickled freely."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def test_a_planted_pickle_is_refused_and_nothing_ran(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    content = {"network_weights": {}, "logging": Planted(os.system, f"touch {trace}")}
    path = saved(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.system"):
        read_torch_file(path)
    assert not trace.exists()
    with zipfile.ZipFile(path) as archive:  # the trap is real: a free reader falls into it
        pickle.loads(archive.read("x/data.pkl"))
    assert trace.exists()


@pytest.mark.parametrize("name", ["builtins eval", "builtins getattr", "builtins __import__", "os system",
                                  "torch load", "torch.hub load", "collections namedtuple", "pickle loads",
                                  "autoseg.interop.pickles read_torch_file", "numpy load",
                                  "torch._utils _rebuild_qtensor", "functools partial",
                                  "torch.storage _load_from_bytes"])  # fmt: skip
def test_functions_are_refused_by_name(name: str, tmp_path: Path) -> None:
    module, function = name.split()
    path = with_pickle(f"c{module}\n{function}\n(tR.".encode(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"asks for {module}.{function};"):
        read_torch_file(path)


@pytest.mark.parametrize("content", [argparse.Namespace(a=1), Path("x"), nn.ReLU()], ids=lambda one: type(one).__name__)
def test_objects_are_refused_by_name(content: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=type(content).__name__):
        read_torch_file(saved({"x": content}, tmp_path / "x.pth"))


def test_dotted_names_reach_nothing(tmp_path: Path) -> None:
    """Protocol 4 may name an attribute of what is admitted: "OrderedDict.__init__.__globals__"."""
    raw = b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93."
    with pytest.raises(UserError, match="asks for collections.OrderedDict.__init__.__globals__"):
        read_torch_file(with_pickle(raw, tmp_path / "x.pth"))


@pytest.mark.parametrize("raw", [
    b"ccollections\nOrderedDict\n}S'_make'\nI1\nsb0.",  # state for a function
    b"ccollections\nOrderedDict\nN}S'_make'\nI1\ns\x86b0.",  # state for a function's slots
    b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",  # numpy's objects
    b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f8'\ntRS'short'\ntR.",
    b"ctorch._utils\n_rebuild_tensor_v2\n(I1\nI0\n(I1\nt(I1\ntI00\nNtR.",  # a tensor without values
    b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI-1\ntQ.",
    b"S'module'\nQ.",
    b"(lp0\ng0\na",  # no end
    b"garbage", b"", b"\x80\x63.",
])  # fmt: skip
def test_damaged_and_hostile_pickles_are_refused(raw: bytes, tmp_path: Path) -> None:
    before = dict(pickles.MAKERS)
    with pytest.raises(UserError, match=r"damaged, or no checkpoint"):
        read_torch_file(with_pickle(raw, tmp_path / "x.pth"))
    assert before == pickles.MAKERS and pickles.MAKERS["collections.OrderedDict"](()) == {}


def test_attributes_of_dictionaries_are_dropped(tmp_path: Path) -> None:
    """As torch's `_metadata`; one called `items` would change what the dictionary seems to hold."""
    raw = b"ccollections\nOrderedDict\n(tRS'a'\nI1\ns(dS'items'\nI1\nsb."
    found = read_torch_file(with_pickle(raw, tmp_path / "x.pth"))
    assert list(found.items()) == [("a", 1)]


@pytest.mark.parametrize(("key", "count", "offset", "shape"), [
    ("0", 4, 0, (5,)), ("0", 4, 2, (3,)), ("0", 3, 0, (3,)), ("0", 5, 0, (5,)), ("1", 4, 0, (4,)), ("../0", 4, 0, (4,)),
])  # fmt: skip
def test_tensors_beyond_their_values_are_refused(
    key: str, count: int, offset: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    path = saved(torch.ones(4), tmp_path / "x.pth")
    stored = StoredTensor(pickles.StoredValues(key, torch.float32, count), offset, shape, (1,))
    with pytest.raises(UserError, match="damaged"):
        read_tensors(path, {"weight": stored})


def test_other_files_are_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_torch_file(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(UserError, match="not a checkpoint of torch"):
        read_torch_file(tmp_path / "text.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("a/b", "c")
    with pytest.raises(UserError, match="without torch's data.pkl"):
        read_torch_file(tmp_path / "other.pth")
    whole = saved({"a": torch.ones(1000)}, tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="only a part of one"):
        read_torch_file(tmp_path / "cut.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="before 1.6"):
        read_torch_file(tmp_path / "old.pth")
