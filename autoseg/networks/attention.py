"""Attention among the voxels of a feature map, placed by their distances in mm; no weight knows the patch.

x ← x + s₁ · Attention(Norm(x) + Depthwise(x));  x ← x + s₂ · SwiGLU(Norm(x)).

Layer normalization per voxel over channels (Ba et al. 2016); the depthwise convolution is a conditional position
encoding (Chu et al. 2021), queries and keys are normalized (Henry et al. 2020) and turned by rotary positions (Su et
al. 2021), a third of the channels per axis; SwiGLU is Shazeer's (2020), the per-channel scales s are LayerScale
(Touvron et al. 2021), blocks are left out at random per sample in training (Huang et al. 2016).
"""

import functools
import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

FIRST_SCALE = 0.1
"""Of LayerScale: small enough to start near the residual skeleton, large enough for gradients (with 1e-6, as in
UNETR++, a training starts with attention as good as switched off)."""
HIDDEN_PER_CHANNEL = 8 / 3
"""SwiGLU has three matrices; with 8/3 they hold as many weights as the two of a usual layer of width 4."""
HIDDEN_MULTIPLE = 8
LONGEST_WAVE = 100.0
"""Ratio of the rotary wavelengths: from 6 to at most 630 token spacings. A stage has some 5 to 70 tokens per axis; the
usual 10,000 is made for texts and would leave most channels as good as unturned."""
FIRST_WEIGHT_STD = 0.02
POOLED_TO = {1: functional.adaptive_avg_pool1d, 2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}
DEPTHWISE: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
SCORES_AT_ONCE = 2**24

logger = logging.getLogger("autoseg")


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √channels) V with a fused kernel where the device has one, else by the formula.

    All (batch, head, token, channel); keys and values have as many tokens as each other.
    """
    if has_fused_kernel(queries, keys, values):
        return functional.scaled_dot_product_attention(queries, keys, values)
    _say_that_formula_is_used(str(queries.device), str(queries.dtype))
    return attend_by_formula(queries, keys, values)


def has_fused_kernel(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether torch has an attention kernel for these tensors that never holds all scores."""
    if queries.device.type == "cuda":
        # No mask, no dropout, not causal, no grouped queries.
        asked = SDPAParams(queries, keys, values, None, 0.0, False, False)
        return bool(can_use_flash_attention(asked) or can_use_efficient_attention(asked))
    return queries.device.type in ("cpu", "meta")


def attend_by_formula(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """As `attend`, a slice of the queries at a time, so that at most `SCORES_AT_ONCE` scores exist.

    With gradients the scores of a slice are computed again in the backward pass.
    """
    batch, heads = queries.shape[:2]
    rows = max(1, SCORES_AT_ONCE // (batch * heads * keys.shape[2]))
    slices = torch.split(queries, rows, dim=2)
    if not torch.is_grad_enabled():
        return torch.cat([_attend_slice(some, keys, values) for some in slices], dim=2)
    return torch.cat([checkpoint(_attend_slice, some, keys, values, use_reentrant=False) for some in slices], dim=2)


def _attend_slice(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=3, dtype=wide).to(values.dtype) @ values


@functools.cache
def _say_that_formula_is_used(device: str, dtype: str) -> None:
    logger.info("attention: %s has no fused kernel for %s; the same is computed by its formula, slower", device, dtype)


@functools.lru_cache(maxsize=64)
def rotation(
    shape: tuple[int, ...], coordinates_of: tuple[float, ...], key_shape: tuple[int, ...] | None, channels: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Angles (token, pair) of the queries and of the keys of a feature map; float32, tokens in the map's order.

    Parameters
    ----------
    shape : voxels of the map.
    coordinates_of : distance between neighboring tokens along each axis, in units of the finest axis.
    key_shape : the grid that keys are averaged to; their coordinates are averaged alike. None: as the queries.
    channels : of one head. Every axis turns channels // (2 · axes) pairs; what is left is not turned.
    """
    pairs = channels // (2 * len(shape))
    # The cache outlives the mode in which it was filled.
    with torch.inference_mode(False):
        waves = LONGEST_WAVE ** (-torch.arange(pairs, dtype=torch.float32, device=device) / max(1, pairs))
        axes = [
            torch.arange(size, dtype=torch.float32, device=device) * step
            for size, step in zip(shape, coordinates_of, strict=True)
        ]
        turned = _angles(axes, waves)
        if key_shape is None:
            return turned, turned
        averaged = [
            functional.adaptive_avg_pool1d(axis[None], size)[0] for axis, size in zip(axes, key_shape, strict=True)
        ]
        return turned, _angles(averaged, waves)


def _angles(axes: Sequence[Tensor], waves: Tensor) -> Tensor:
    """(token, axis · pair): coordinate times frequency, for every token of a grid."""
    grid = torch.meshgrid(*axes, indexing="ij")
    return torch.cat([axis.reshape(-1, 1) * waves for axis in grid], dim=1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn pairs of channels of x (batch, head, token, channel) by angles (token, pair).

    Channel i is paired with channel i + pairs; the product of a turned query and a turned key depends on the
    difference of their angles only.
    """
    pairs = angles.shape[1]
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine, rest), dim=-1)


class Attention(nn.Module):
    """Multi-head attention over a feature map (batch, *shape, channel); the output has the same shape.

    token_spacing : mm between neighboring tokens per axis. key_shape : keys and values are averages over a grid of
    at most this shape; None: every token is a key.
    """

    def __init__(
        self, features: int, heads: int, token_spacing: Sequence[float], key_shape: Sequence[int] | None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Linear(features, features, bias=False)
        self.keys_values = nn.Linear(features, 2 * features, bias=False)
        self.query_scale = nn.Parameter(torch.ones(features // heads))
        self.key_scale = nn.Parameter(torch.ones(features // heads))
        self.output = nn.Linear(features, features)
        self.units = tuple(float(step / min(token_spacing)) for step in token_spacing)
        self.key_shape = None if key_shape is None else tuple(key_shape)

    def forward(self, x: Tensor) -> Tensor:
        batch, *shape, features = x.shape
        key_shape = self._pooled(shape)
        seen = x if key_shape is None else _average(x, key_shape)
        queries = self._split(self.queries(x))
        keys, values = (self._split(part) for part in self.keys_values(seen).chunk(2, dim=-1))
        angles = rotation(tuple(shape), self.units, key_shape, features // self.heads, x.device)
        queries = rotate(_normalize(queries, self.query_scale), angles[0]).to(values.dtype)
        keys = rotate(_normalize(keys, self.key_scale), angles[1]).to(values.dtype)
        mixed = attend(queries, keys, values)
        result: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, *shape, features))
        return result

    def _pooled(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        if self.key_shape is None:
            return None
        grid = tuple(min(size, most) for size, most in zip(shape, self.key_shape, strict=True))
        return None if grid == tuple(shape) else grid

    def _split(self, x: Tensor) -> Tensor:
        """(batch, *shape, channel) to (batch, head, token, channel of the head)."""
        return x.reshape(len(x), -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)


def _average(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(batch, *shape, channel) averaged to (batch, *grid, channel)."""
    averaged = POOLED_TO[len(grid)](x.movedim(-1, 1), grid)  # type: ignore[arg-type]
    return averaged.movedim(1, -1)


def _normalize(x: Tensor, scale: Tensor) -> Tensor:
    """x / root mean square over the last axis, times `scale`; at least in float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + 1e-6) * scale


class GatedLayer(nn.Module):
    """SwiGLU: W₃ (silu(W₁ x) ⊙ W₂ x) over the last axis; the hidden width is a multiple of 8 near 8/3."""

    def __init__(self, features: int) -> None:
        super().__init__()
        hidden = HIDDEN_MULTIPLE * math.ceil(features * HIDDEN_PER_CHANNEL / HIDDEN_MULTIPLE)
        self.gate_and_value = nn.Linear(features, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        result: Tensor = self.output(functional.silu(gate) * value)
        return result


class AttentionBlock(nn.Module):
    """Attention and a gated layer, both residual, on feature maps (batch, channel, *shape); see the module's formula.

    `kernel`: of the depthwise convolution, the stage's own, so that it does not mix across distant slices.
    `drop_probability`: in training each sample skips either half of the block with it; what is kept is scaled up.
    """

    def __init__(
        self, features: int, heads: int, kernel: Sequence[int], token_spacing: Sequence[float],
        key_shape: Sequence[int] | None, drop_probability: float,
    ) -> None:  # fmt: skip
        super().__init__()
        padding = tuple((size - 1) // 2 for size in kernel)
        kind = DEPTHWISE[len(kernel)]
        self.position = kind(features, features, tuple(kernel), padding=padding, groups=features)  # type: ignore[arg-type]
        self.attention_norm = nn.LayerNorm(features)
        self.attention = Attention(features, heads, token_spacing, key_shape)
        self.scale_attention = nn.Parameter(torch.full((features,), FIRST_SCALE))
        self.mlp_norm = nn.LayerNorm(features)
        self.mlp = GatedLayer(features)
        self.scale_mlp = nn.Parameter(torch.full((features,), FIRST_SCALE))
        self.drop_probability = drop_probability

    def forward(self, x: Tensor) -> Tensor:
        positions = self._encode_positions(x).movedim(1, -1)
        x = x.movedim(1, -1)
        mixed = self.attention(self.attention_norm(x) + positions)
        x = x + self._kept(self.scale_attention * mixed)
        x = x + self._kept(self.scale_mlp * self.mlp(self.mlp_norm(x)))
        return x.movedim(-1, 1)

    def initialize(self) -> None:
        """First weights, from torch's global generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=FIRST_WEIGHT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        # An encoding that starts at zero leaves the first steps to content; its gradient does not vanish.
        nn.init.zeros_(self.position.weight)
        assert self.position.bias is not None
        nn.init.zeros_(self.position.bias)
        for scale in (self.scale_attention, self.scale_mlp):
            nn.init.constant_(scale, FIRST_SCALE)
        for scale in (self.attention.query_scale, self.attention.key_scale):
            nn.init.ones_(scale)

    def _encode_positions(self, x: Tensor) -> Tensor:
        # In float32 on a CPU: oneDNN's bfloat16 depthwise convolutions take 1.1 to 2 times as long (two cores, forward
        # and backward, 128 channels of 10×14×10: 2.9 against 5.6 ms; 512 of 16×16: 0.45 against 0.48 ms).
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.position(x.float())  # type: ignore[no-any-return]
        return self.position(x)  # type: ignore[no-any-return]

    def _kept(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_probability == 0:
            return x
        keep = 1 - self.drop_probability
        draw = torch.rand((len(x), *(1 for _ in x.shape[1:])), device=x.device)
        return x * ((draw < keep).to(x.dtype) / keep)
