"""Networks on the device, ready: the folds of a model average their logits; several models, their probabilities."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Union

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoseg.errors import UserError, all_of
from autoseg.inference.sliding_window import Piece, WindowSettings, collect, stream_logits
from autoseg.networks.memory import keep_freed_memory
from autoseg.schema import CheckpointInfo

Folds = Sequence[tuple[nn.Module, CheckpointInfo]]
BY_FOLDS = ("configuration", "architecture", "labels", "regions", "ignore", "channel_names", "store", "file_ending",
            "is_2d", "previous_stage")
BY_MODELS = ("labels", "regions", "ignore", "channel_names", "file_ending", "is_2d")
BY_STAGES = ("labels", "channel_names", "file_ending", "is_2d")


@dataclass(frozen=True)
class Member:
    """A model as it was read: its folds and, of a cascade, the model whose masks it takes."""

    folds: Folds
    previous: Union["Member", None] = None

    @property
    def info(self) -> CheckpointInfo:
        """The first fold's record."""
        return self.folds[0][1]

    @property
    def stages(self) -> tuple["Member", ...]:
        """The cascade, first stage first; a model without one is its own only stage."""
        return (*(() if self.previous is None else self.previous.stages), self)


@dataclass(frozen=True)
class Ensemble:
    """A model's networks on the device, each with the patch positions to mirror; `info` is the first fold's.

    `previous`: of a cascade, the model whose masks are channels of the input.
    """

    members: tuple[tuple[nn.Module, tuple[int, ...]], ...]
    info: CheckpointInfo
    previous: Union["Ensemble", None] = None

    @property
    def stages(self) -> tuple["Ensemble", ...]:
        """The cascade, first stage first; a model without one is its own only stage."""
        return (*(() if self.previous is None else self.previous.stages), self)


def make_ensembles(members: Sequence[Member], device: torch.device, tta: bool = True) -> tuple[Ensemble, ...]:
    """`make_ensemble` of every model.

    Raises
    ------
    UserError : models that do not segment the same things in the same images, besides what `make_ensemble` raises.
    """
    if not members:
        raise ValueError("a prediction needs at least one model")
    first = members[0].info
    problems = [
        f"{described(member.info)}: {field} differ{'' if field.endswith('s') else 's'} from {described(first)}'s"
        for member in members[1:]
        for field in _differences(first, member.info, BY_MODELS)
    ]
    if problems:
        raise all_of(problems, "These models cannot be combined:",
                     "Combine models of one dataset, or predict with each alone (--name, --configuration).")
    return tuple(make_ensemble(member, device, tta) for member in members)


def make_ensemble(member: Member, device: torch.device, tta: bool = True) -> Ensemble:
    """The model and what comes before it, moved to `device` (in place) and ready; without `tta` nothing is mirrored.

    Raises
    ------
    UserError : folds that were not trained alike, listing what differs; a cascade without its first stage, or with
        one that segments something else.
    """
    if not member.folds:
        raise ValueError("an ensemble needs at least one fold")
    first = member.info
    problems = [
        f"fold {info.fold}: {field} differs from fold {first.fold}'s"
        for _, info in member.folds[1:]
        for field in _differences(first, info, (*BY_FOLDS, "patch_shape"))
    ]
    if problems:
        heading = f"The folds of model {first.name} ({first.configuration}) do not fit together:"
        raise all_of(problems, heading,
                     "Train them from the same plan, or predict with the folds that agree (--folds).")
    previous = _previous(member, device, tta)
    if device.type == "cpu":
        keep_freed_memory()
    for network, info in member.folds:
        network.to(device).eval()
        if len(info.network.patch_shape) == 3:  # measured: up to a fifth faster on CPUs in float32
            network.to(memory_format=torch.channels_last_3d)
    networks = tuple((network, info.mirror_axes if tta else ()) for network, info in member.folds)
    return Ensemble(networks, first, previous)


def _previous(member: Member, device: torch.device, tta: bool) -> Ensemble | None:
    needed, given = member.info.previous_stage, member.previous
    if needed is None:
        return None
    if given is None:
        raise UserError(f"{described(member.info)} takes the masks of {needed.name} ({needed.configuration}), which "
                        f"is not there.\nTrain it: autoseg train --name {needed.name} --configuration "
                        f"{needed.configuration}.")
    if different := _differences(member.info, given.info, BY_STAGES):
        raise UserError(f"{described(member.info)} takes the masks of {described(given.info)}, but their "
                        f"{', '.join(different)} differ.\nTrain both from the same plan.")
    return make_ensemble(given, device, tta)


def predict_logits_of(
    ensemble: Ensemble,
    image: Float[Tensor, "channel z y x"],
    settings: WindowSettings,
    advance: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "class z y x"]:
    """Mean logits over the folds, float32, on the prepared image's grid; of a cascade, its last stage's.

    image : `ensemble.info.input_channels` channels. Raises as `stream_logits_of` does.
    """
    return collect(stream_logits_of(ensemble, image, settings, advance), image.shape[1])


def stream_logits_of(
    ensemble: Ensemble,
    image: Float[Tensor, "channel z y x"],
    settings: WindowSettings,
    advance: Callable[[int, int], None] | None = None,
) -> Iterator[Piece]:
    """As `predict_logits_of`, in pieces along z: see `stream_logits`.

    Raises
    ------
    UserError : logits that are not finite (half precision overflowed, or the weights are broken).
    """
    for first, planes in stream_logits(ensemble.members, image, ensemble.info.network.patch_shape, settings, advance):
        for volume in planes:  # class by class: no copy
            if not bool(torch.isfinite(torch.stack(volume.aminmax())).all()):
                raise UserError(f"model {ensemble.info.name} gives NaN or infinity here; finite logits were expected.\n"
                                "Try --device cpu (float32); if it persists, its training has diverged.")
        yield first, planes


def described(info: CheckpointInfo) -> str:
    """ "resenc (3d_fullres)": how messages call a model."""
    return f"{info.name} ({info.configuration})"


def _differences(one: CheckpointInfo, other: CheckpointInfo, fields: Sequence[str]) -> list[str]:
    return [field for field in fields if _fact(one, field) != _fact(other, field)]


def _fact(info: CheckpointInfo, field: str) -> object:
    if field == "patch_shape":
        return info.network.patch_shape
    # The order of labels is that of the network's channels.
    return list(info.labels.items()) if field == "labels" else getattr(info, field)
