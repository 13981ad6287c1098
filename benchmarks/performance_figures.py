"""Samples of alternating rounds, and what is said of them: median, range, ratio of one side to the other."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from measuring import LimitReached, Measurement

Sample = dict[str, Any]
"""Figures of one run; or `failed` (of which limit it died) beside the seconds and memory used until then."""
Side = Callable[[], Sample]
OURS, THEIRS = "autoseg", "nnunetv2"


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of `count` values."""

    median: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 3) -> str:
        """ "4.2 [3.9, 4.4]"; the range only where there is one."""
        if self.count == 1:
            return number(self.median, digits)
        return f"{number(self.median, digits)} [{number(self.low, digits)}, {number(self.high, digits)}]"


def alternate(sides: Mapping[str, Side], rounds: int, tell: Callable[[str], None] = print) -> dict[str, list[Sample]]:
    """Every side once per round, in turn; every second round begins with the last. One that failed runs no more."""
    found: dict[str, list[Sample]] = {name: [] for name in sides}
    for turn in range(rounds):
        names = list(sides)
        for name in names if turn % 2 == 0 else reversed(names):
            if any("failed" in sample for sample in found[name]):
                continue
            sample = limited(sides[name])
            found[name].append(sample)
            tell(f"    round {turn + 1}, {name}: {described(sample)}")
    return found


def limited(side: Side) -> Sample:
    """What a side measured, or of which limit it died, or with which last line."""
    try:
        return side()
    except LimitReached as reached:
        return {"failed": str(reached), **as_sample(reached.measured)}
    except RuntimeError as error:
        print(error)
        return {"failed": f"ended with an error: {str(error).strip().splitlines()[-1][:200]}"}


def as_sample(measured: Measurement) -> Sample:
    return dict(vars(measured))


def described(sample: Sample) -> str:
    """The scalar figures of a sample in one line."""
    scalars = [f"{name} {value:g}" for name, value in sample.items() if isinstance(value, int | float)]
    return ", ".join([*([sample["failed"]] if "failed" in sample else []), *scalars])


def values(samples: Sequence[Sample], figure: str) -> list[float]:
    """Of the runs that ended well and have it."""
    return [sample[figure] for sample in samples if "failed" not in sample and sample.get(figure) is not None]


def spread(found: Sequence[float]) -> Spread | None:
    return Spread(statistics.median(found), min(found), max(found), len(found)) if found else None


def ratio(
    numerator: Sequence[Sample], denominator: Sequence[Sample], figure: str, below: str | None = None
) -> Spread | None:
    """Of each round's two values (`below`: the denominator's figure, if it is another); None where a side has none."""
    pairs = zip(values(numerator, figure), values(denominator, below or figure), strict=False)
    return spread([one / other for one, other in pairs if other])


def failure(samples: Sequence[Sample]) -> str | None:
    """Of which limit a side died, if it did."""
    return next((sample["failed"] for sample in samples if "failed" in sample), None)


def number(value: float, digits: int = 3) -> str:
    """Three digits that count, never an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"
