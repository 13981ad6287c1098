"""Instance normalization followed by an addition and a leaky ReLU, as one differentiable operation.

On the CPU `torch.nn.functional.instance_norm` copies channels-last input to channels-first, and the next
convolution copies it back; and the derivative of group normalization is slow in channels last. Here the memory
format is kept: forward as group normalization with one channel per group (in float32 and channels last, where that
loses digits, centered and then scaled, in the input's own memory where nobody needs that), backward as batch
normalization of one sample at a time. Below `FEW_VOXELS` copying is cheaper than many small kernels. Milliseconds of
one core, channels last, forward and backward:

    (2, 32, 40, 56, 40)  bfloat16  torch 8.0 + 42  here 3.1 + 7.2;  float32  torch 29 + 41  here 8.9 + 9.9
    (7, 64, 20, 28, 20)  bfloat16  torch 9.0 + 40  here 2.5 + 6.5;  float32  torch 20 + 34  here 8.0 + 8.7
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-5
# Under this many voxels, torch's group normalization takes a kernel that is slow in channels last.
FEW_VOXELS = 1024
SQUARES_AT_ONCE = 1 << 18  # values
aten = torch.ops.aten


class InstanceNorm(nn.Module):
    """Instance normalization (ε 1e-5, affine), an optional addition, then leaky ReLU with `slope` (1: none).

    Input and output are (batch, channel, y, x) or (batch, channel, z, y, x); statistics are taken in float32
    whatever the precision of the input.
    """

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.slope = slope

    def forward(self, x: Tensor, residual: Tensor | None = None, owned: bool = False) -> Tensor:
        """`owned`: nobody else needs x; where no gradient is recorded, its memory is used."""
        weight, bias = self.weight, self.bias
        if x.device.type == "cpu":
            if owned and not torch.is_grad_enabled():
                return _add_and_activate(_normalize(x, weight, bias, owned)[0], residual, self.slope)
            parts = (x, weight, bias, residual, self.slope)
            result: Tensor = _NormalizeAddActivate.apply(*parts)  # type: ignore[no-untyped-call]
            return result
        out = functional.instance_norm(x, weight=weight, bias=bias, use_input_stats=True, eps=EPSILON)
        if residual is not None:
            out = out + residual
        return out if self.slope == 1.0 else functional.leaky_relu(out, self.slope, inplace=True)


class _NormalizeAddActivate(torch.autograd.Function):
    """leaky_relu(instance_norm(x) + residual) on the CPU; the derivatives are torch's own of the three."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, slope: float
    ) -> Tensor:
        out, mean, inverse_std = _normalize(x, weight, bias, owned=False)
        _add_and_activate(out, residual, slope)
        ctx.save_for_backward(x, weight, mean, inverse_std, out)
        ctx.slope = slope
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight, mean, inverse_std, out = ctx.saved_tensors
        # The kernels are slow where their operands differ in memory format.
        gradient = gradient.contiguous(memory_format=_memory_format(x))
        if ctx.slope != 1.0:
            gradient = aten.leaky_relu_backward(gradient, out, ctx.slope, True)
        by_x, by_weight, by_bias = _normalize_backward(gradient, x, weight, mean, inverse_std)
        return by_x, by_weight, by_bias, gradient if ctx.needs_input_grad[3] else None, None


def _add_and_activate(out: Tensor, residual: Tensor | None, slope: float) -> Tensor:
    """In place."""
    if residual is not None:
        out.add_(residual)
    return out if slope == 1.0 else functional.leaky_relu_(out, slope)


def _normalize(x: Tensor, weight: Tensor, bias: Tensor, owned: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Instance normalization; also mean and 1/√(variance + ε) as (batch, channel). `owned`: x may be overwritten."""
    batch, channels = x.shape[:2]
    voxels = math.prod(x.shape[2:])
    if voxels >= FEW_VOXELS:
        if x.dtype == torch.float32 and _memory_format(x) != torch.contiguous_format:
            return _center_and_scale(x, weight, bias, owned)
        return torch.native_group_norm(x, weight, bias, batch, channels, voxels, channels, EPSILON)
    # As one sample with batch · channel channels, batch normalization is instance normalization.
    flat = x.contiguous().view(1, batch * channels, *x.shape[2:])
    out, mean, inverse_std = torch.native_batch_norm(
        flat, weight.repeat(batch), bias.repeat(batch), None, None, True, 0.0, EPSILON
    )
    out = out.view(x.shape).contiguous(memory_format=_memory_format(x))
    return out, mean.view(batch, channels), inverse_std.view(batch, channels)


def _center_and_scale(x: Tensor, weight: Tensor, bias: Tensor, owned: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `_normalize`, to float32's precision whatever the memory format.

    In channels last torch's group normalization takes the variance as mean(x²) − mean(x)², both summed voxel by voxel:
    where the mean is 30 standard deviations its output is 0.05 off, and even around zero a network's logits move by
    more than 1e-4.
    """
    axes, ones = tuple(range(2, x.dim())), [1] * (x.dim() - 2)
    mean = x.mean(axes, keepdim=True)
    centered = x.sub_(mean) if owned else x - mean
    # Squares of a few planes at a time: they stay in the caches, and no memory is needed for them.
    planes = max(1, SQUARES_AT_ONCE * x.shape[2] // x.numel())
    parts = [centered[:, :, start : start + planes] for start in range(0, x.shape[2], planes)]
    squares = torch.stack([(part * part).sum(axes, keepdim=True) for part in parts]).sum(0)
    inverse_std = (squares / math.prod(x.shape[2:]) + EPSILON).rsqrt()
    torch.addcmul(bias.view(1, -1, *ones), centered, inverse_std * weight.view(1, -1, *ones), out=centered)
    return centered, mean.flatten(1), inverse_std.flatten(1)


def _normalize_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by x, weight and bias; `gradient` has the memory format of `x`."""
    batch, channels = x.shape[:2]
    if math.prod(x.shape[2:]) < FEW_VOXELS:
        flat = (1, batch * channels, *x.shape[2:])
        by_x, by_weight, by_bias = aten.native_batch_norm_backward(
            gradient.contiguous().view(flat), x.contiguous().view(flat), weight.repeat(batch), None, None,
            mean.view(-1), inverse_std.view(-1), True, EPSILON, [True] * 3,
        )  # fmt: skip
        by_x = by_x.view(x.shape).contiguous(memory_format=_memory_format(x))
        return by_x, by_weight.view(batch, channels).sum(0), by_bias.view(batch, channels).sum(0)
    by_x, parts = torch.empty_like(x), torch.empty(2, batch, channels, dtype=weight.dtype)
    for i in range(batch):
        aten.native_batch_norm_backward(
            gradient[i : i + 1], x[i : i + 1], weight, None, None, mean[i], inverse_std[i], True, EPSILON,
            [True] * 3, out0=by_x[i : i + 1], out1=parts[0, i], out2=parts[1, i],
        )  # fmt: skip
    by_weight, by_bias = parts.sum(1)
    return by_x, by_weight, by_bias


def _memory_format(x: Tensor) -> torch.memory_format:
    """The dense memory format that `x` has."""
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return last if x.is_contiguous(memory_format=last) and not x.is_contiguous() else torch.contiguous_format
