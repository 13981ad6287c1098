"""Draw docs/hybrid.svg: the hybrid that the planner makes for 128×128×128 voxels of 1 mm, and its attention block.

    python docs/draw_hybrid.py
"""

import math
from pathlib import Path

from autoseg.planning.architectures import build_topology, pool_patch
from autoseg.planning.attention import MOST_TOKENS, POOLED_KEYS, stage_shapes

PATCH, SPACING = (128, 128, 128), (1.0, 1.0, 1.0)
WIDTH, HEIGHT, LEVEL = 1390, 660, 88
RESIDUAL, ATTENTION, DECODER, PLAIN, INK, FAINT = "#b9cfe8", "#f2b27a", "#cfe3c4", "#eeeeee", "#222222", "#777777"
ENCODER_X, DECODER_X, BLOCK_X = 40, 520, 850


def main() -> None:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Helvetica, Arial, sans-serif" font-size="13">',
        box(0, 0, WIDTH, HEIGHT, "#ffffff", "#ffffff"),
        *network(),
        *attention_block(),
        "</svg>",
    ]
    (Path(__file__).parent / "hybrid.svg").write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- the network
def network() -> list[str]:
    topology = build_topology("hybrid", pool_patch("hybrid", SPACING, PATCH))
    assert topology.attention is not None
    shapes = stage_shapes(topology, PATCH)
    drawn = [text(ENCODER_X, 32, "hybrid for 128×128×128 voxels of 1 mm", bold=True),
             text(ENCODER_X, 66, "image → stem: 1 convolution", FAINT), arrow(ENCODER_X + 14, 72, ENCODER_X + 14, 92)]
    for stage, shape in enumerate(shapes):
        y = 96 + LEVEL * stage
        attending = topology.attention.blocks[stage]
        residual = topology.encoder_blocks[stage] - attending
        drawn += encoder(y, residual, attending)
        drawn.append(text(ENCODER_X, y + 50, f"{edge(shape)}, {topology.features[stage]} channels", FAINT))
        if attending:
            step = PATCH[0] // shape[0]
            tokens = f"{math.prod(shape):,} tokens of {step} mm, {topology.attention.heads[stage]} heads"
            drawn.append(text(ENCODER_X + 182, y + 50, tokens, FAINT))
        last = stage == len(shapes) - 1
        if not last:
            drawn += [arrow(ENCODER_X + 14, y + 57, ENCODER_X + 14, y + LEVEL - 4),
                      arrow(ENCODER_X + 380, y + 16, DECODER_X - 4, y + 16),
                      box(DECODER_X, y, 150, 32, DECODER), text(DECODER_X + 12, y + 21, "concatenate, 1 conv"),
                      arrow(DECODER_X + 150, y + 16, DECODER_X + 186, y + 16),
                      text(DECODER_X + 192, y + 21, "logits" + " (not trained)" * (stage == len(shapes) - 2))]
        if 0 < stage < len(shapes) - 1:
            drawn += [arrow(DECODER_X + 75, y - 2, DECODER_X + 75, y - LEVEL + 36),
                      text(DECODER_X + 84, y - 22, "transposed conv", FAINT)]
        if last:
            drawn += [line(ENCODER_X + 380, y + 16, DECODER_X + 75, y + 16),
                      arrow(DECODER_X + 75, y + 16, DECODER_X + 75, y - LEVEL + 36),
                      text(DECODER_X + 84, y - 22, "transposed conv", FAINT)]
    return drawn + legend()


def encoder(y: int, residual: int, attending: int) -> list[str]:
    drawn = [box(ENCODER_X, y, 376, 32, "#ffffff")]
    for index in range(residual + attending):
        kind = ATTENTION if index >= residual else RESIDUAL
        drawn.append(box(ENCODER_X + 8 + 60 * index, y + 6, 54, 20, kind))
    return drawn


def legend() -> list[str]:
    y = HEIGHT - 30
    return [
        box(ENCODER_X, y, 20, 14, RESIDUAL), text(ENCODER_X + 26, y + 12, "residual block (two convolutions)"),
        box(ENCODER_X + 260, y, 20, 14, ATTENTION), text(ENCODER_X + 286, y + 12, "attention block (right)"),
        text(ENCODER_X + 460, y + 12, "the first block of a stage is strided", FAINT),
    ]


def edge(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


# ---------------------------------------------------------------- the block
def attention_block() -> list[str]:
    left, middle = BLOCK_X + 60, BLOCK_X + 190
    steps = [
        (96, "layer norm", PLAIN), (146, "+  depthwise conv of x (positions)", PLAIN),
        (196, "Q, K, V;  Q and K normalized", PLAIN), (246, "Q, K turned by positions in mm", ATTENTION),
        (296, "softmax(Q Kᵀ) V  → linear", ATTENTION), (346, "× s₁  (0.1 at the start)", PLAIN),
        (446, "layer norm", PLAIN), (490, "SwiGLU, hidden 8/3", PLAIN), (534, "× s₂  (0.1 at the start)", PLAIN),
    ]
    drawn = [text(BLOCK_X, 32, "attention block", bold=True), text(middle - 3, 62, "x")]
    previous = 68
    for y, words, color in steps:
        if y == 446:
            drawn += plus(middle, 410)
            previous = 420
        drawn += [arrow(middle, previous, middle, y - 2), box(left, y, 260, 28, color),
                  text(left + 12, y + 19, words)]
        previous = y + 28
        if y == 346:
            drawn.append(arrow(middle, previous, middle, 398))
    drawn += [*plus(middle, 590), arrow(middle, previous, middle, 578)]
    for top, bottom in ((80, 410), (432, 590)):
        drawn += [line(middle, top, left - 30, top), line(left - 30, top, left - 30, bottom),
                  arrow(left - 30, bottom, middle - 11, bottom)]
    notes = (f"where a stage has more than {MOST_TOKENS:,}", "tokens, K and V are those of a map",
             f"averaged to {edge((POOLED_KEYS[3],) * 3)}", f"(2-D: {edge((POOLED_KEYS[2],) * 2)})")
    return drawn + [text(left + 272, 202 + 16 * row, note, FAINT, 11) for row, note in enumerate(notes)]


def plus(x: int, y: int) -> list[str]:
    return [f'<circle cx="{x}" cy="{y}" r="10" fill="#ffffff" stroke="{INK}"/>',
            line(x - 5, y, x + 5, y), line(x, y - 5, x, y + 5)]


# ---------------------------------------------------------------- SVG
def box(x: int, y: int, width: int, height: int, fill: str, stroke: str = INK) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="{stroke}"/>'


def text(x: int, y: int, words: str, color: str = INK, size: int = 13, bold: bool = False) -> str:
    weight = ' font-weight="bold"' * bold
    return f'<text x="{x}" y="{y}" fill="{color}" font-size="{size + 2 * bold}"{weight}>{words}</text>'


def line(x: int, y: int, x2: int, y2: int) -> str:
    return f'<line x1="{x}" y1="{y}" x2="{x2}" y2="{y2}" stroke="{INK}"/>'


def arrow(x: int, y: int, x2: int, y2: int) -> str:
    length = math.hypot(x2 - x, y2 - y)
    along, across = ((x2 - x) / length, (y2 - y) / length), ((y - y2) / length, (x2 - x) / length)
    corners = [(x2 - 7 * along[0] + side * 4 * across[0], y2 - 7 * along[1] + side * 4 * across[1]) for side in (1, -1)]
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in [(float(x2), float(y2)), *corners])
    return f'{line(x, y, x2, y2)}<polygon points="{points}" fill="{INK}"/>'


if __name__ == "__main__":
    main()
