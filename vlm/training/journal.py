"""What a training leaves to look at: metrics.jsonl and progress.png."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from autoseg.records import replacing, storage_error
from vlm.model.retrieval import DIRECTIONS

METRICS_NAME, PICTURE_NAME = "metrics.jsonl", "progress.png"
REDRAW_SECONDS = 30.0
DRAWN_RECALLS = (1, 10)


@dataclass(frozen=True)
class StepMetrics:
    """One line of metrics.jsonl: some steps of training, or a validation.

    step : updates so far. epoch : passes over the corpus so far. seconds : of training so far. loss : mean since the
    line before; None for a line of validation alone. images_per_second : since the line before, validation left out.
    data_wait : share of that time spent waiting for batches. truncated : captions so far that lost their end.
    validation : figures of the val split.
    """

    step: int
    epoch: float
    seconds: float
    loss: float | None = None
    learning_rate: float | None = None
    logit_scale: float | None = None
    images_per_second: float | None = None
    data_wait: float | None = None
    truncated: int | None = None
    validation: dict[str, float] = field(default_factory=dict)


def read_metrics(path: Path) -> list[StepMetrics]:
    """All lines of a metrics.jsonl; an unfinished last line (a killed process) is left out."""
    if not path.exists():
        return []
    return [StepMetrics(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


class Journal:
    """Appends lines to metrics.jsonl and redraws progress.png now and then.

    Lines after `kept_step` are dropped first: a resumed training repeats those steps.
    """

    def __init__(self, folder: Path, kept_step: int, chances: Mapping[str, float]) -> None:
        self._folder, self._chances = folder, chances
        path = folder / METRICS_NAME
        self._lines = [line for line in read_metrics(path) if line.step <= kept_step] if kept_step else []
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{json.dumps(asdict(line))}\n" for line in self._lines), encoding="utf-8")
        self._drawn_at = float("-inf")

    def add(self, line: StepMetrics) -> None:
        """Write one line."""
        self._lines.append(line)
        path = self._folder / METRICS_NAME
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(f"{json.dumps(asdict(line))}\n")
        except OSError as error:
            raise storage_error(error, path) from error
        if line.validation and time.monotonic() - self._drawn_at >= REDRAW_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Write progress.png."""
        if self._lines:
            self._drawn_at = time.monotonic()
            draw_progress(self._lines, self._chances, self._folder / PICTURE_NAME)


def draw_progress(lines: Sequence[StepMetrics], chances: Mapping[str, float], path: Path) -> None:
    """Losses, retrieval on the val split beside its chance, learning rate and logit scale over the steps."""
    from matplotlib.figure import Figure

    trained = [line for line in lines if line.loss is not None]
    validated = [line for line in lines if line.validation]
    figure = Figure(figsize=(9, 9), layout="constrained")
    losses, recall, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.3))
    losses.plot([line.step for line in trained], [line.loss for line in trained], color="silver", label="training")
    for name in ("multi_positive", "infonce"):
        losses.plot([line.step for line in validated], [line.validation[name] for line in validated], marker=".",
                    label=f"validation, {name}")
    losses.set_ylabel("loss")
    losses.set_ylim(bottom=0)
    losses.legend(frameon=False)
    steps = [line.step for line in validated]
    for direction in DIRECTIONS:
        for k, style in zip(DRAWN_RECALLS, ("-", "--"), strict=True):
            name = f"{direction}_r{k}"
            (drawn,) = recall.plot(steps, [line.validation[name] for line in validated], style, marker=".",
                                   label=f"{direction.replace('_', ' ')} R@{k}")
            if name in chances:
                recall.axhline(chances[name], linewidth=0.7, linestyle=":", color=drawn.get_color())
    recall.set_ylabel("recall on the val split\n(dotted: chance)")
    recall.set_ylim(bottom=0)
    recall.legend(frameon=False, fontsize="small", ncols=2)
    rate.plot([line.step for line in trained], [line.learning_rate for line in trained], color="gray")
    rate.set_ylabel("learning rate")
    scale = rate.twinx()
    scale.plot([line.step for line in trained], [line.logit_scale for line in trained], color="tab:red")
    scale.set_ylabel("logit scale", color="tab:red")
    last = lines[-1]
    rate.set_xlabel(f"step ({last.epoch:.2f} epochs, {last.seconds / 60:.1f} min)")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
