"""Labels of a slab on the device that holds its logits: only labels are downloaded."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from autoseg.data.resampling import AxisOperator, AxisOperators
from autoseg.inference.blocks import BlockDecoder
from autoseg.inference.sliding_window import is_out_of_memory

logger = logging.getLogger("autoseg")

SLAB_VOXELS = 1 << 23  # of a slab: 32 MB for its maximum, as much for a class and what lies between


class DeviceDecoder:
    """Labels of slabs of one case, as `BlockDecoder`; where the device's memory is too small, the host's."""

    def __init__(
        self, device: torch.device, operators: AxisOperators, painted: Sequence[int] | None, dtype: np.dtype[np.integer]
    ) -> None:
        self._device, self._painted = device, painted
        self._dtype = torch.uint8 if dtype == np.uint8 else torch.int16
        self._across = tuple(_Axis(operator, device) for operator in operators[1:])
        self._on_host = BlockDecoder(operators, painted, dtype)
        self._fits = self._joins = True
        self.thickness = max(1, SLAB_VOXELS // (operators[1].size_out * operators[2].size_out))

    def concatenate(self, arrays: Sequence[Tensor], axis: int) -> Tensor:
        """On the device where all of them are there and there is room; else on the host."""
        if self._fits and self._joins and all(array.device.type == self._device.type for array in arrays):
            try:
                return torch.cat(list(arrays), axis)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._joins = False
                logger.info("the GPU's memory is too small for planes of logits beside their sums: from here on they "
                            "are put together on the host")
        return torch.cat([array.cpu() for array in arrays], axis)

    @torch.inference_mode()
    def __call__(
        self, planes: Float[Tensor, "class z y x"], along_z: AxisOperator
    ) -> Integer[np.ndarray, "z2 y2 x2"]:
        """Labels of the slices that `along_z` makes of the planes."""
        if self._fits:
            try:
                return np.asarray(self._labels(planes, _Axis(along_z, self._device)).cpu().numpy())
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._fits = False
                logger.info("the GPU's memory is too small for decoding: labels are made on the host")
        return self._on_host(planes.cpu().numpy(), along_z)

    def _labels(self, planes: Tensor, along_z: "_Axis") -> Tensor:
        first = 0 if self._painted is not None else 1
        best = None if self._painted is not None else self._resampled(planes[0], along_z)
        labels = torch.zeros(
            (along_z.size, *(axis.size for axis in self._across)), dtype=self._dtype, device=self._device
        )
        for index in range(first, len(planes)):
            volume = self._resampled(planes[index], along_z)
            if self._painted is not None:
                labels.masked_fill_(volume > 0, self._painted[index])
            else:
                assert best is not None
                labels.masked_fill_(volume > best, index)
                best = torch.maximum(best, volume)
        return labels

    def _resampled(self, volume: Tensor, along_z: "_Axis") -> Tensor:
        """(z, y, x) of one class on the finer grid."""
        y, x = self._across
        return along_z(y(x(volume.to(self._device), 2), 1), 0)


class _Axis:
    """An axis operator on a device."""

    def __init__(self, operator: AxisOperator, device: torch.device) -> None:
        self.size = operator.size_out
        self._matrix = None if operator.matrix is None else torch.tensor(operator.matrix, device=device)
        self._index = None if operator.index is None else torch.tensor(operator.index, device=device)

    def __call__(self, volume: Tensor, axis: int) -> Tensor:
        """(z, y, x) resampled along one axis."""
        if self._index is not None:
            return volume.index_select(axis, self._index)
        if self._matrix is None:
            return volume
        if axis == 2:
            return volume @ self._matrix.T
        if axis == 1:
            return self._matrix @ volume
        return (self._matrix @ volume.reshape(len(volume), -1)).reshape(self.size, *volume.shape[1:])
