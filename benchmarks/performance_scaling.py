"""Decoding against volume and against the number of labels: seconds and peak memory, ours and nnU-Net's export.

Logits are synthetic, on a grid 1.5 times as coarse along each axis: organs, as trained networks give, and for ours also
ragged ones, as random weights give. Ours arrive plane by plane; nnU-Net's export needs them whole (in float16, as its
predictor gives them), which is part of what it needs memory for; what is in them makes no difference to it.
"""

from collections.abc import Iterator
from typing import Any

from performance_figures import OURS, THEIRS, Sample, alternate, failure
from performance_setting import Setting, ask
from synthetic_logits import Kind

COARSER = 1.5
RAGGED = f"{OURS} ragged"
Triple = tuple[int, int, int]


def measure_scaling(setting: Setting) -> Iterator[dict[str, Any]]:
    """A row per volume and per number of labels; where nnU-Net died of a smaller one, it is not tried again."""
    sizes = setting.sizes
    series = {"volume": [(shape, sizes.volume_labels) for shape in sizes.volumes],
              "labels": [(sizes.label_shape, count) for count in sizes.label_counts]}
    for along, points in series.items():
        died: str | None = None
        for shape, labels in points:
            z, y, x = shape
            print(f"  decoding {x}×{y}×{z} with {labels} labels", flush=True)
            sides = {OURS: lambda: _decode(OURS, shape, labels, setting),  # noqa: B023
                     RAGGED: lambda: _decode(OURS, shape, labels, setting, "ragged")}  # noqa: B023
            if died is None:
                sides[THEIRS] = lambda: _decode(THEIRS, shape, labels, setting)  # noqa: B023
            found: dict[str, list[Sample]] = alternate(sides, setting.times(sizes.scaling))
            if died is not None:
                found[THEIRS] = [{"failed": f"not tried: {died} with a smaller one"}]
            died = died or failure(found[THEIRS])
            yield {"data": f"{x}×{y}×{z}, {labels} labels", "what": f"decode by {along}", "along": along,
                   "shape": shape, "voxels": x * y * z, "labels": labels, "coarser": COARSER, **found}


def _decode(side: str, shape: Triple, labels: int, setting: Setting, kind: Kind = "organs") -> Sample:
    script = {OURS: "performance_inside_autoseg.py", THEIRS: "performance_inside_nnunet.py"}[side]
    task = {"shape": shape, "labels": labels, "coarser": COARSER, "kind": kind}
    return ask(script, "decode", task, setting, setting.work / "tasks" / side)
