"""One network in nnU-Net v2's hands and in ours: outputs of a window, logits of an image, masks, beside each other."""

import hashlib
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.data.preprocessing import Placement, PreparedImage, prepare_image
from autoseg.data.resampling import linear_operators, resample_linear
from autoseg.data.volume import read_image
from autoseg.geometry import permuted
from autoseg.inference.computing import window_settings
from autoseg.inference.ensembling import Member, make_ensemble, predict_logits_of
from autoseg.networks.checkpoint import read_model

CPU = torch.device("cpu")
HEAVY = 0.01
"""Voxels whose windows weigh less than this in sum (10 in a window's centre) are left out where nnU-Net's half
precision is compared: there it holds the weights themselves to a few bits, or replaces a zero."""


@dataclass(frozen=True)
class Setting:
    """How images are predicted."""

    folds: tuple[int, ...]
    tta: bool

    def __str__(self) -> str:
        return f"{len(self.folds)} fold{'s' * (len(self.folds) > 1)}, {'mirrored' if self.tta else 'plain'}"


SETTINGS = (Setting((0,), False), Setting((0,), True), Setting((0, 1), False), Setting((0, 1), True))


@dataclass(frozen=True)
class MaskDifference:
    """Two masks of one image.

    Attributes
    ----------
    voxels, different : of the whole image.
    largest_margin : of nnU-Net's logits on the image's grid, at a voxel where the masks differ: between its two
        largest classes, or, of regions, to zero. 0 where no voxel differs.
    unexplained : differing voxels whose margin exceeds the difference between the two sides' logits there.
    """

    voxels: int
    different: int
    largest_margin: float
    unexplained: int

    @property
    def equal(self) -> float:
        """The share of equal voxels."""
        return 1 - self.different / self.voxels


@dataclass(frozen=True)
class CaseComparison:
    """One image under one setting; differences are largest absolute ones over all voxels and channels.

    Attributes
    ----------
    windows : of the image. spread, largest : standard deviation and largest absolute value of nnU-Net's logits.
    prepared : between the prepared images.
    logits : ours from our own prepared image, against nnU-Net's windows summed in float32.
    same_input : the same from nnU-Net's prepared image; None where mirrored, as it says nothing new.
    half : against its predictor, which sums in float16, where the windows' weight exceeds `HEAVY`.
    half_anywhere : the same everywhere. heavy : the share of voxels in `half`.
    own_half_anywhere, own_mask_of_half : what half precision alone does: nnU-Net's float32 sum in our place.
    mask, mask_of_half : `autoseg predict`'s mask against nnU-Net's export of the float32 logits and of its predictor's.
    labels : voxels of each value in our mask.
    """

    case: str
    setting: str
    windows: int
    spread: float
    largest: float
    prepared: float
    same_input: float | None
    logits: float
    half: float
    half_anywhere: float
    own_half_anywhere: float
    heavy: float
    mask: MaskDifference
    mask_of_half: MaskDifference
    own_mask_of_half: MaskDifference
    labels: dict[int, int]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "labels": {str(value): count for value, count in self.labels.items()}}


# ---------------------------------------------------------------- nnU-Net's side
class Remembering(nn.Module):
    """A network that computes every input once: several settings ask for the same windows."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()
        self._fold = 0
        self._outputs: dict[tuple[int, bytes], Tensor] = {}

    def load_state_dict(self, weights: Any, *_: Any, **__: Any) -> Any:
        self._fold = id(weights)
        return self.network.load_state_dict(weights)

    def forward(self, window: Tensor) -> Tensor:
        key = (self._fold, hashlib.sha256(window.contiguous().numpy().tobytes() + str(window.shape).encode()).digest())
        if key not in self._outputs:
            self._outputs[key] = self.network(window)
        return self._outputs[key].clone()  # nnU-Net adds to what it is given

    def forget(self) -> None:
        """Free what was computed."""
        self._outputs.clear()


class NnUNet:
    """nnU-Net's predictor for the two folds of a result folder."""

    def __init__(self, folder: Path) -> None:
        with _silent():
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

            self.predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, perform_everything_on_device=False)
            self.predictor.initialize_from_trained_model_folder(str(folder), None)
        self.folds = list(self.predictor.list_of_parameters)
        self.network = self.predictor.network = Remembering(self.predictor.network)
        self.has_regions = self.predictor.label_manager.has_regions

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Of a window."""
        return tuple(self.predictor.configuration_manager.patch_size)

    def prepare(self, images: Sequence[Path]) -> tuple[Tensor, dict[str, Any]]:
        """The image as nnU-Net's preprocessor makes it, and what it needs for the way back."""
        one = self.predictor
        preprocessor = one.configuration_manager.preprocessor_class(verbose=False)
        files = [str(path) for path in images]
        with _silent():
            image, _, properties = preprocessor.run_case(
                files, None, one.plans_manager, one.configuration_manager, one.dataset_json
            )
        return torch.from_numpy(np.ascontiguousarray(image, np.float32)), properties

    def use(self, setting: Setting) -> None:
        """Predict so from now on."""
        self.predictor.list_of_parameters = [self.folds[fold] for fold in setting.folds]
        self.predictor.use_mirroring = setting.tta

    def shipped_logits(self, image: Tensor) -> Tensor:
        """Of the predictor as it is: sums in float16."""
        with _silent():
            return self.predictor.predict_logits_from_preprocessed_data(image)

    def exact_logits(self, image: Tensor) -> tuple[Tensor, Tensor, int]:
        """Its windows, mirrorings and importance, summed in float32; and the weight of each voxel, and the windows."""
        from acvl_utils.cropping_and_padding.padding import pad_nd_image
        from nnunetv2.inference.sliding_window_prediction import compute_gaussian

        one = self.predictor
        padded, inner = pad_nd_image(image, self.patch_shape, "constant", {"value": 0}, True, None)
        importance = compute_gaussian(self.patch_shape, 1 / 8, 10, torch.float32, CPU)
        slicers = one._internal_get_sliding_window_slicers(padded.shape[1:])
        folds = []
        for weights in one.list_of_parameters:
            self.network.load_state_dict(weights)
            total = torch.zeros(one.label_manager.num_segmentation_heads, *padded.shape[1:])
            weight = torch.zeros(padded.shape[1:])
            for slicer in slicers:
                total[slicer] += one._internal_maybe_mirror_and_predict(padded[slicer][None])[0] * importance
                weight[slicer[1:]] += importance
            folds.append(total / weight)
        kept = tuple(inner[1:])
        return torch.stack(folds).mean(0)[(slice(None), *kept)], weight[kept], len(slicers)

    def export(self, logits: Tensor, properties: dict[str, Any]) -> np.ndarray:
        """The mask in the file's array order, as nnU-Net makes it of logits."""
        from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

        one = self.predictor
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, one.plans_manager, one.configuration_manager, one.label_manager, properties,
            num_threads_torch=torch.get_num_threads(),
        )  # fmt: skip

    def on_image(self, logits: Tensor, placement: Placement) -> np.ndarray:
        """Logits resampled by nnU-Net to the image's cropped grid, plan order."""
        spacing = permuted(placement.original_spacing, placement.axes)
        resample = self.predictor.configuration_manager.resampling_fn_probabilities
        return np.asarray(resample(logits, placement.cropped_shape, placement.spacing, spacing), np.float64)


# ---------------------------------------------------------------- our side
class Ours:
    """The same folds, imported into a run folder."""

    def __init__(self, run: Path, name: str, configuration: str) -> None:
        self.run, self.name, self.configuration = run, name, configuration
        folder = run / "models" / name / configuration
        folds = [read_model(path) for path in sorted(folder.glob("fold_*"))]
        self.folds = [(Remembering(network), info) for network, info in folds]
        self.info = self.folds[0][1]

    def prepare(self, images: Sequence[Path]) -> PreparedImage:
        """The image as our preprocessing makes it."""
        return prepare_image(read_image(tuple(images), len(self.info.channel_names)), self.info.store)

    def logits(self, image: Tensor, setting: Setting) -> Tensor:
        """Of the prepared image, as `autoseg predict` computes them."""
        member = Member([self.folds[fold] for fold in setting.folds])
        return predict_logits_of(make_ensemble(member, CPU, setting.tta), image, window_settings(self.info, CPU, 0.5))

    def on_image(self, logits: Tensor, placement: Placement) -> np.ndarray:
        """Logits resampled by us to the image's cropped grid, plan order."""
        operators = linear_operators(placement.shape, placement.spacing, placement.cropped_shape,
                                     permuted(placement.original_spacing, placement.axes))
        return np.stack([resample_linear(one, operators) for one in logits.numpy()]).astype(np.float64)

    def predict(self, images: Path, output: Path, setting: Setting) -> None:
        """`autoseg predict` of a folder."""
        call_autoseg("predict", "--run", self.run, "--name", self.name, "--configuration", self.configuration,
                     "--folds", ",".join(map(str, setting.folds)), "--tta" if setting.tta else "--no-tta",
                     "--device", "cpu", "-i", images, "-o", output)


def call_autoseg(*arguments: object) -> None:
    """The command line in a process of its own; RuntimeError with its output where it fails."""
    command = [sys.executable, "-m", "autoseg", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


# ---------------------------------------------------------------- side by side
def window_difference(theirs: NnUNet, ours: Ours, window: Tensor) -> float:
    """The largest absolute difference between the outputs for (1, channel, *patch), over the folds."""
    differences = []
    with torch.inference_mode():
        for weights, (network, _) in zip(theirs.folds, ours.folds, strict=True):
            theirs.network.load_state_dict(weights)
            differences.append(float((network(window) - theirs.network(window)).abs().max()))
    return max(differences)


def centre_window(image: Tensor, patch_shape: Sequence[int]) -> Tensor:
    """(1, channel, *patch) from the middle of a prepared image, padded with zeros where it is smaller."""
    from acvl_utils.cropping_and_padding.padding import pad_nd_image

    sliced = len(patch_shape) == 2
    padded = pad_nd_image(image, list(patch_shape), "constant", {"value": 0})
    lengths = (1, *patch_shape) if sliced else tuple(patch_shape)
    starts = [(n - length) // 2 for n, length in zip(padded.shape[1:], lengths, strict=True)]
    where = tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
    window = padded[(slice(None), *where)][None]
    return window[:, :, 0] if sliced else window


def compare_case(
    case: str, images: Sequence[Path], theirs: NnUNet, ours: Ours, masks: dict[Setting, Path]
) -> Iterator[CaseComparison]:
    """One comparison per setting in `masks`: the file that `autoseg predict` wrote under it."""
    image, properties = theirs.prepare(images)
    prepared = ours.prepare(images)
    own = torch.from_numpy(prepared.image)
    if own.shape != image.shape:
        raise ValueError(f"{case}: prepared {tuple(own.shape)}, nnU-Net {tuple(image.shape)}")
    for setting, path in masks.items():
        theirs.use(setting)
        exact, weight, windows = theirs.exact_logits(image)
        shipped = theirs.shipped_logits(image)
        logits = ours.logits(own, setting)
        heavy = weight > HEAVY
        half = (logits - shipped.float()).abs()
        mask = read_image((path,), 1).voxels[0].astype(np.int64)
        masks_of = [theirs.export(peer, dict(properties)) for peer in (exact, shipped)]
        on_image = [theirs.on_image(peer, prepared.placement) for peer in (exact, shipped)]
        own_on_image = ours.on_image(logits, prepared.placement)
        pairs = [((mask, masks_of[0]), (own_on_image, on_image[0])), ((mask, masks_of[1]), (own_on_image, on_image[1])),
                 ((masks_of[0], masks_of[1]), (on_image[0], on_image[1]))]
        against = [mask_difference(both, logits_of_both, prepared.placement, theirs.has_regions)
                   for both, logits_of_both in pairs]
        values, counts = np.unique(mask, return_counts=True)
        yield CaseComparison(
            case=case, setting=str(setting), windows=windows, spread=float(exact.std()),
            largest=float(exact.abs().max()), prepared=float((own - image).abs().max()),
            same_input=None if setting.tta else float((ours.logits(image, setting) - exact).abs().max()),
            logits=float((logits - exact).abs().max()), half=float(half[:, heavy].max()),
            half_anywhere=float(half.max()), own_half_anywhere=float((exact - shipped.float()).abs().max()),
            heavy=float(heavy.float().mean()), mask=against[0], mask_of_half=against[1], own_mask_of_half=against[2],
            labels=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        )  # fmt: skip
    for network in (theirs.network, *(network for network, _ in ours.folds)):
        network.forget()


def mask_difference(
    masks: tuple[np.ndarray, np.ndarray],
    logits: tuple[np.ndarray, np.ndarray],
    placement: Placement,
    has_regions: bool,
) -> MaskDifference:
    """Two masks in array order, the second nnU-Net's; `logits`: of both on the cropped grid, plan order."""
    differs = masks[0] != masks[1]
    margin, room = margin_and_room(*logits, has_regions)
    box = tuple(slice(start, stop) for start, stop in placement.crop)
    inside = differs[box].transpose(placement.axes)
    unexplained = int((margin[inside] > room[inside]).sum()) + int(differs.sum() - inside.sum())
    largest = float(margin[inside].max()) if inside.any() else 0.0
    return MaskDifference(int(differs.size), int(differs.sum()), largest, unexplained)


def margin_and_room(ours: np.ndarray, theirs: np.ndarray, has_regions: bool) -> tuple[np.ndarray, np.ndarray]:
    """How far each voxel of theirs is from another label, and how far the logits (channel, z, y, x) are apart there.

    Softmax: the label can only change where the top two of theirs lie closer than the largest change of any pair's
    difference. Regions: where a logit lies closer to zero than it changes.
    """
    change = ours - theirs
    if has_regions:
        # The voxel's channel that is the easiest to turn: the margin beyond what it changes by.
        easiest = (np.abs(theirs) - np.abs(change)).argmin(0)[None]
        return (np.take_along_axis(np.abs(theirs), easiest, 0)[0], np.take_along_axis(np.abs(change), easiest, 0)[0])
    ordered = np.partition(theirs, -2, axis=0)
    return ordered[-1] - ordered[-2], change.max(0) - change.min(0)


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
