"""First weights of a vision tower from another CLIP's checkpoint (MetaCLIP), position embedding resized, strictly."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from autoseg.errors import UserError
from vlm.model.records import TowerStart
from vlm.model.tensor_files import grouped, load_exactly, read_tensors, weights_file, weights_sha256

PREFIX, POSITIONS = "visual.", "positional_embedding"


def load_vision_weights(visual: nn.Module, source: Path) -> tuple[TowerStart, float | None]:
    """Fill a vision tower from the `visual.*` tensors of a checkpoint; returns the report and the logit_scale there.

    Parameters
    ----------
    source : a file of tensors, or a folder that holds one.

    Raises
    ------
    UserError : there are no such tensors, or one is missing, unexpected or of another shape.
    """
    path = weights_file(source) if source.is_dir() else source
    tensors = read_tensors(path)
    given = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    if not given:
        raise UserError(f"{path} holds no vision tower of a CLIP: no tensor is called {PREFIX}…; the first is "
                        f"{next(iter(tensors), 'none')}.\nGive an open_clip checkpoint.")
    resized = []
    expected = visual.state_dict()[POSITIONS]
    if POSITIONS in given and given[POSITIONS].shape[0] != expected.shape[0]:
        before = given[POSITIONS].shape[0]
        given[POSITIONS] = resize_positions(given[POSITIONS].float(), expected.shape[0], str(path))
        resized.append(f"{POSITIONS}: {before} to {expected.shape[0]} positions")
    loaded = load_exactly(visual, given, str(path), "Give a checkpoint of the same vision tower (width, layers, patch, "
                          "embedding), or another architecture.")
    start = TowerStart(
        source=source.name, sha256=weights_sha256(path), loaded=loaded, resized=tuple(resized),
        left_out=grouped(name for name in tensors if not name.startswith(PREFIX)))
    scale = tensors.get("logit_scale")
    return start, None if scale is None else float(scale)


def resize_positions(
    positions: Float[Tensor, "old width"], count: int, source: str = "the checkpoint"
) -> Float[Tensor, "new width"]:
    """A position embedding (class token first) for another number of patches of a square image, by bicubic pieces.

    Patches keep their place in the picture: the outer borders of the old and the new grid coincide.
    """
    old, new = math.isqrt(positions.shape[0] - 1), math.isqrt(count - 1)
    if old**2 != positions.shape[0] - 1 or new**2 != count - 1:
        raise UserError(f"{source}: {positions.shape[0]} positions of patches cannot be resized to {count}: "
                        "squares of patches and one class token were expected.")
    grid = positions[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], grid.permute(0, 2, 3, 1).reshape(count - 1, -1)])
