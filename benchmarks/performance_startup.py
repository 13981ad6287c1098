"""From the start of the command to the first mask, of one Hippocampus case, with the whole network of the plan."""

from collections.abc import Iterator
from typing import Any

from performance_data import HIPPOCAMPUS, NoData, dataset
from performance_models import make_model
from performance_predict import both_commands
from performance_setting import Setting


def measure_startup(setting: Setting) -> Iterator[dict[str, Any]]:
    """One row."""
    try:
        source = dataset(HIPPOCAMPUS, setting.data, setting.work)
    except NoData as missing:
        yield {"data": HIPPOCAMPUS, "skipped": str(missing)}
        return
    model = make_model(source, 1, setting.work / "models" / HIPPOCAMPUS)
    found = both_commands(model, setting, True, setting.times(setting.sizes.startup))
    yield {"data": HIPPOCAMPUS, "what": "start to first mask", "cases": 1, **model.facts, **found}
