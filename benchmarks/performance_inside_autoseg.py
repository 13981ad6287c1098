"""What is timed inside autoseg, each in a process of its own: stages of a prediction, resident training, decoding.

    python performance_inside_autoseg.py stages|train|decode TASK.json

TASK.json says what; its field `to` names the file that receives the figures. `train` is the command line `autoseg
train` whose batches are all the first one, resident on the device: the network alone, without any data to wait for.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_logits import SyntheticLogits, coarser_shape

Task = dict[str, Any]


# ---------------------------------------------------------------- prediction
def stages(task: Task) -> dict[str, Any]:
    """Seconds of every stage, one after another (the command overlaps them), summed over the cases; the ceiling.

    A first image is read before, so that no stage waits for imports or the disk.
    Ceiling: as many passes as the windows take, each as long as one of a batch that stays on the device.
    """
    import torch

    from autoseg.data.labels import to_file_values
    from autoseg.data.preprocessing import prepare_image
    from autoseg.data.volume import read_image, write_labels
    from autoseg.inference.computing import window_settings
    from autoseg.inference.ensembling import Member, make_ensemble
    from autoseg.inference.joint_head import summed_map
    from autoseg.inference.windows import lay_windows
    from autoseg.networks.checkpoint import read_model

    device = torch.device(task["device"])
    ensemble = make_ensemble(Member([read_model(Path(task["model"]))]), device, task["tta"])
    info, settings = ensemble.info, window_settings(ensemble.info, device, 0.5)
    if task["precision"] is not None:
        settings = replace(settings, precision=getattr(torch, task["precision"]))
    watch, passes = Stopwatch(device), 0
    copies = 2 ** len(ensemble.members[0][1])
    read_image([Path(path) for path in next(iter(task["cases"].values()))], len(info.channel_names))
    for case, images in task["cases"].items():
        files = [Path(path) for path in images]
        volume = watch("read", partial(read_image, files, len(info.channel_names)))
        prepared = watch("preprocess", partial(prepare_image, volume, info.store))
        labels = mask_of(ensemble, prepared, settings, watch)
        labels = watch("decode", partial(to_file_values, labels, tuple(info.labels.values())))
        watch("write", partial(write_labels, labels, volume, Path(task["output"]) / f"{case}.nii.gz"))
        grid = lay_windows(prepared.image.shape[1:], info.network.patch_shape, settings.overlap)
        passes += len(grid.corners) * copies
    patch = info.network.patch_shape
    batch = settings.windows_together(grid)
    window, compute = torch.randn(batch, info.input_channels, *patch, device=device), summed_map(ensemble.members[0][0])
    with torch.inference_mode(), torch.autocast(device.type, settings.precision, settings.precision != torch.float32):
        seconds = pass_seconds(lambda: compute(window), device, task["passes"])
    return {**watch.seconds, "passes": passes, "ceiling": passes / batch * seconds, **gpu_peak(device)}


def mask_of(ensemble: Any, prepared: Any, settings: Any, watch: "Stopwatch") -> Any:
    """Internal labels, decoded while windows are computed; what the decoder waits for is the network's time."""
    import torch

    from autoseg.inference.blocks import BlockDecoder
    from autoseg.inference.decoding import decode_stream, painted_labels
    from autoseg.inference.device_decoding import DeviceDecoder
    from autoseg.inference.ensembling import stream_logits_of

    arriving = Arriving(stream_logits_of(ensemble, torch.from_numpy(prepared.image), settings), watch.device)
    on_cuda = watch.device.type == "cuda"
    pieces = arriving if on_cuda else ((first, planes.numpy()) for first, planes in arriving)
    decoder = partial(DeviceDecoder, watch.device) if on_cuda else BlockDecoder
    before = watch.seconds.get("decode", 0.0)
    labels = watch("decode", partial(decode_stream, pieces, prepared.placement, painted_labels(ensemble.info), None,
                                     decoder))
    watch.seconds["decode"] = max(before, watch.seconds["decode"] - arriving.seconds)
    watch.seconds["network"] = watch.seconds.get("network", 0.0) + arriving.seconds
    return labels


class Stopwatch:
    """Seconds by name; a GPU is waited for."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        settle(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result


def pass_seconds(run: Callable[[], Any], device: Any, count: int) -> float:
    """The median of `count` passes, after one that warms up."""
    taken = []
    for _ in range(count + 1):
        start = time.perf_counter()
        run()
        settle(device)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


def settle(device: Any) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def gpu_peak(device: Any) -> dict[str, float]:
    """The largest memory that tensors took on a GPU, MiB."""
    if device.type != "cuda":
        return {}
    import torch

    return {"gpu_peak_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1)}


class Arriving:
    """An iterator that knows how long it was waited for."""

    def __init__(self, pieces: Iterator[Any], device: Any = None) -> None:
        self._pieces, self._device, self.seconds = pieces, device, 0.0

    def __iter__(self) -> "Arriving":
        return self

    def __next__(self) -> Any:
        start = time.perf_counter()
        try:
            return next(self._pieces)
        finally:
            if self._device is not None:
                settle(self._device)
            self.seconds += time.perf_counter() - start


# ---------------------------------------------------------------- training
def train(task: Task) -> dict[str, Any]:
    """`autoseg train` with `task["arguments"]`, its batches replaced by the first one."""
    from autoseg.__main__ import main as autoseg
    from autoseg.training import session

    opened = session.open_patches

    @contextmanager
    def resident(*arguments: Any, **named: Any) -> Iterator[Any]:
        with opened(*arguments, **named) as source:
            batch = source.batch(0)
        yield Resident(batch)

    session.open_patches = resident  # type: ignore[assignment]
    sys.argv = ["autoseg", "train", *task["arguments"]]
    try:
        autoseg()
    except SystemExit as end:
        if end.code:
            raise
    import torch

    return gpu_peak(torch.device(task["device"]))


class Resident:
    """A source of patches that has one batch."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def batch(self, _: int) -> Any:
        return self._batch


# ---------------------------------------------------------------- decoding
def decode(task: Task) -> dict[str, Any]:
    """Logits that arrive plane by plane, on a coarser grid, to labels of `task["shape"]` (z, y, x).

    What making the logits takes is not counted.
    """
    from autoseg.data.preprocessing import Placement
    from autoseg.inference.decoding import decode_stream

    shape, coarser = tuple(task["shape"]), task["coarser"]
    logits = SyntheticLogits(task["labels"], coarser_shape(shape, coarser), task["kind"])
    placement = Placement(shape, (1.0,) * 3, tuple((0, n) for n in shape), (0, 1, 2), shape, (1.0,) * 3,  # type: ignore[arg-type]
                          logits.shape[1:], (coarser,) * 3)
    made = Arriving(logits.pieces())
    start = time.perf_counter()
    labels = decode_stream(made, placement)
    seconds = time.perf_counter() - start - made.seconds
    return {"decode": seconds, "labels_found": labels_in(labels)}


def labels_in(mask: np.ndarray) -> int:
    """How many labels some of its slices hold: that something was decoded."""
    return len(np.unique(mask[:: max(1, len(mask) // 16)]))


def answer(parts: Mapping[str, Callable[[Task], Mapping[str, Any]]]) -> None:
    """Do what the command line asks for and write the figures where the task says."""
    what, path = sys.argv[1:]
    task = json.loads(Path(path).read_text())
    Path(task["to"]).write_text(json.dumps(parts[what](task)))


if __name__ == "__main__":
    answer({"stages": stages, "train": train, "decode": decode})
