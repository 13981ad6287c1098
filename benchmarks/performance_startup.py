"""From the start of the command to the first mask, of one Hippocampus case, with the whole network of the plan."""

from collections.abc import Iterator
from typing import Any

from performance_data import HIPPOCAMPUS, NoData, dataset
from performance_figures import OURS, THEIRS, alternate
from performance_models import make_model
from performance_predict import predict_ours, predict_theirs
from performance_setting import Setting


def measure_startup(setting: Setting) -> Iterator[dict[str, Any]]:
    """One row."""
    try:
        source = dataset(HIPPOCAMPUS, setting.data, setting.work)
    except NoData as missing:
        yield {"data": HIPPOCAMPUS, "skipped": str(missing)}
        return
    model = make_model(source, 1, setting.work / "models" / HIPPOCAMPUS)
    found = alternate({OURS: lambda: predict_ours(model, setting, True),
                       THEIRS: lambda: predict_theirs(model, setting, True)}, setting.times(setting.sizes.startup))
    yield {"data": HIPPOCAMPUS, "what": "start to first mask", "cases": 1, **model.facts, **found}
