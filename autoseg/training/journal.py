"""What a training leaves to look at: metrics.jsonl, progress.png, and TensorBoard events where it is installed."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoseg.records import replacing, storage_error


@dataclass(frozen=True)
class EpochMetrics:
    """One line of metrics.jsonl.

    Attributes
    ----------
    step : optimizer updates so far. seconds : training time so far.
    loss, validation_loss : means over the epoch; Dice + cross-entropy, so −1 is the best.
    pseudo_dice : per label, from random validation patches (hard argmax), None where no voxel was seen.
    data_wait : share of the epoch's time spent waiting for batches.
    """

    epoch: int
    step: int
    seconds: float
    loss: float | None
    validation_loss: float | None
    pseudo_dice: dict[str, float | None]
    mean_pseudo_dice: float | None
    learning_rate: float
    steps_per_second: float
    data_wait: float


def read_metrics(path: Path) -> list[EpochMetrics]:
    """All lines of a metrics.jsonl; an unfinished last line (a killed process) is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [EpochMetrics(**json.loads(line)) for line in lines]


def start_metrics(path: Path, kept_epochs: int) -> list[EpochMetrics]:
    """Keep only the first `kept_epochs` epochs (a resumed training repeats the later ones); returns them."""
    kept = [line for line in read_metrics(path) if line.epoch < kept_epochs]
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{json.dumps(asdict(line))}\n" for line in kept), encoding="utf-8")
    return kept


class Journal:
    """Appends epochs to metrics.jsonl and redraws progress.png (at most every `redraw_seconds`)."""

    def __init__(self, folder: Path, kept_epochs: int = 0, redraw_seconds: float = 30.0) -> None:
        self._folder, self._redraw_seconds = folder, redraw_seconds
        self._epochs = start_metrics(folder / "metrics.jsonl", kept_epochs)
        self._drawn_at = float("-inf")
        self._events = _open_tensorboard(folder)

    def add(self, metrics: EpochMetrics) -> None:
        """Write one epoch."""
        self._epochs.append(metrics)
        path = self._folder / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(f"{json.dumps(asdict(metrics))}\n")
            if self._events is not None:
                _add_events(self._events, metrics)
        except OSError as error:
            raise storage_error(error, path) from error
        if metrics.seconds - self._drawn_at >= self._redraw_seconds:
            self.draw()

    def draw(self) -> None:
        """Write progress.png."""
        if self._epochs:
            self._drawn_at = self._epochs[-1].seconds
            draw_progress(self._epochs, self._folder / "progress.png")

    def close(self) -> None:
        """Draw the last epochs and close the event file."""
        self.draw()
        if self._events is not None:
            self._events.close()


def draw_progress(epochs: Sequence[EpochMetrics], path: Path) -> None:
    """A picture of loss, pseudo-Dice per label and learning rate over the minutes of training."""
    from matplotlib.figure import Figure

    minutes = [line.seconds / 60 for line in epochs]
    figure = Figure(figsize=(9, 9), layout="constrained")
    losses, dice, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
    losses.plot(minutes, [_or_nan(line.loss) for line in epochs], label="training")
    losses.plot(minutes, [_or_nan(line.validation_loss) for line in epochs], label="validation patches")
    losses.set_ylabel("loss (Dice + CE; best −1)")
    losses.legend(frameon=False)
    for name in epochs[-1].pseudo_dice:
        dice.plot(minutes, [_or_nan(line.pseudo_dice.get(name)) for line in epochs], alpha=0.6, label=name)
    dice.plot(minutes, [_or_nan(line.mean_pseudo_dice) for line in epochs], color="black", label="mean")
    dice.set_ylabel("pseudo-Dice (patches)")
    dice.set_ylim(0, 1)
    dice.legend(frameon=False, fontsize="small", ncols=3)
    rate.plot(minutes, [line.learning_rate for line in epochs], color="gray")
    rate.set_ylabel("learning rate")
    rate.set_xlabel(f"minutes of training ({epochs[-1].epoch + 1} epochs, {epochs[-1].step} steps, "
                    f"{epochs[-1].steps_per_second:.2f} steps/s)")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _open_tensorboard(folder: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]


def _add_events(events: Any, metrics: EpochMetrics) -> None:
    scalars = {"loss/training": metrics.loss, "loss/validation": metrics.validation_loss,
               "rate/learning": metrics.learning_rate, "rate/steps_per_second": metrics.steps_per_second,
               "pseudo_dice/mean": metrics.mean_pseudo_dice,
               **{f"pseudo_dice/{name}": value for name, value in metrics.pseudo_dice.items()}}
    for name, value in scalars.items():
        if value is not None:
            events.add_scalar(name, value, metrics.step)
