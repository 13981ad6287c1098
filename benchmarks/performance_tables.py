"""Rows of the measurement as Markdown tables: medians, with the range over the rounds where there are several."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from performance_figures import OURS, THEIRS, Sample, Spread, failure, number, ratio, spread, values

Row = Mapping[str, Any]
STAGES = ("read", "preprocess", "network", "decode", "write")
MINUS = "–"


def tables(part: str, rows: Iterable[Row]) -> str:
    """The part's tables, and a line for everything that was skipped."""
    rows = list(rows)
    kept = [row for row in rows if "skipped" not in row]
    skipped = [f"* {row['data']}, {row.get('what', 'all')}: skipped, {row['skipped']}." for row in rows
               if "skipped" in row]
    blocks = MAKERS[part](kept) if kept else []
    return "\n\n".join([*blocks, *(["\n".join(skipped)] if skipped else [])])


def print_rows(part: str, rows: Iterable[Row]) -> None:
    """To the terminal."""
    print(f"\n{tables(part, rows)}\n", flush=True)


# ---------------------------------------------------------------- cells
def figure(samples: Sequence[Sample], name: str, digits: int = 3, scale: float = 1.0) -> str:
    """The spread of a figure; or of which limit the side died."""
    died = failure(samples)
    if died is not None:
        return died
    return text(spread([scale * value for value in values(samples, name)]), digits)


def text(found: Spread | None, digits: int = 3, unit: str = "") -> str:
    return MINUS if found is None else f"{found.text(digits)}{unit}"


def times(row: Row, name: str) -> str:
    """How many times as much of a figure nnunetv2 takes."""
    return text(ratio(row[THEIRS], row[OURS], name), 3, "×")


def share(samples: Sequence[Sample], part: str, whole: str) -> str:
    """One figure of a run over another, in percent."""
    return text(scaled(ratio(samples, samples, part, whole), 100), 3, " %")


def markdown(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    made = [heading, ["---"] * len(heading), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in made)


# ---------------------------------------------------------------- parts
def plan_tables(rows: Sequence[Row]) -> list[str]:
    heading = ["data", "autoseg, s", "nnunetv2, s", "ratio", "processor, ratio", "autoseg, peak MiB",
               "nnunetv2, peak MiB", "ratio", "plans"]
    return [markdown(heading, [
        [row["data"], *_both(row, "seconds"), times(row, "processor_seconds"), *_both(row, "peak_mib"),
         _plans(row)] for row in rows])]


def _both(row: Row, name: str) -> list[str]:
    return [figure(row[OURS], name), figure(row[THEIRS], name), times(row, name)]


def _plans(row: Row) -> str:
    if "plans_differ_in" not in row:
        return MINUS
    return f"differ in {', '.join(row['plans_differ_in'])}" if row["plans_differ_in"] else "equal"


GPU = "gpu_peak_mib"


def on_gpu(*sides: Sequence[Sample]) -> bool:
    """Whether a side has a figure of the GPU's memory."""
    return any(values(samples, GPU) for samples in sides)


def train_tables(rows: Sequence[Row]) -> list[str]:
    heading = ["precision of autoseg", "autoseg, steps/s", "waiting for data", "its network alone", "of that",
               "nnunetv2, steps/s", "waiting for data", "its network alone, this precision", "**ratio**"]
    has_gpu = on_gpu(*(row[f"{OURS} alone"] for row in rows))
    heading += ["autoseg, GPU MiB", "nnunetv2, GPU MiB"] * has_gpu
    lines = []
    for row in rows:
        alone = ratio(row[OURS], row[f"{OURS} alone"], "steps_per_second")
        lines.append([row["precision"], figure(row[OURS], "steps_per_second"),
                      figure(row[OURS], "data_wait", 2, 100) + " %", figure(row[f"{OURS} alone"], "steps_per_second"),
                      text(scaled(alone, 100), 3, " %"), figure(row[THEIRS], "steps_per_second"),
                      figure(row[THEIRS], "data_wait", 2, 100) + " %",
                      figure(row[f"{THEIRS} alone"], "steps_per_second"),
                      text(ratio(row[OURS], row[THEIRS], "steps_per_second"), 3, "×"),
                      *[figure(row[side], GPU) for side in (f"{OURS} alone", THEIRS) if has_gpu]])
    about = rows[0]
    said = (f"{about['data']}, patch {'×'.join(map(str, about['patch_shape']))}, batch {about['batch_size']}; plans "
            f"{_plans(about)}; {about['steps']} steps per round.")
    return [said, markdown(heading, lines)]


def scaled(found: Spread | None, factor: float) -> Spread | None:
    if found is None:
        return None
    return Spread(factor * found.median, factor * found.low, factor * found.high, found.count)


def predict_tables(rows: Sequence[Row]) -> list[str]:
    commands = [row for row in rows if row["what"].startswith("predict")]
    heading = ["data", "command", "autoseg, s", "nnunetv2, s", "ratio", "autoseg, peak MiB", "nnunetv2, peak MiB",
               "ratio", "autoseg without start, s", "of that, network alone", "equal voxels"]
    first = markdown(heading, [
        [named(row), row["what"].removeprefix("predict").strip() or "exact", *_both(row, "seconds"),
         *_both(row, "peak_mib"), figure(row[OURS], "without_start"), share(row[OURS], "ceiling", "without_start"),
         _equal(row)] for row in commands])
    heading = ["data", "", *(f"{stage}, s" for stage in STAGES), "all, s", "network alone, s", "of the network stage",
               "of all", "peak MiB"]
    has_gpu = on_gpu(*(row[OURS] for row in rows))
    heading += ["GPU peak MiB"] * has_gpu
    lines = []
    for row in rows:
        if row["what"].startswith("stages"):
            half = row["what"].removeprefix("stages").removeprefix(" in")
            sides = (OURS,) if half else (OURS, THEIRS)
            for side in sides:
                samples = row[side]
                lines.append([named(row), f"{side}{half}", *(figure(samples, stage) for stage in (*STAGES, "total")),
                              figure(samples, "ceiling"), share(samples, "ceiling", "network"),
                              share(samples, "ceiling", "total"), figure(samples, "peak_mib"),
                              *[figure(samples, GPU)] * has_gpu])
    return [first, markdown(heading, lines)]


def named(row: Row) -> str:
    """The dataset, how many cases, and what was done to its network."""
    notes = [f"{row['cases']} case{'s' * (row['cases'] > 1)}"]
    notes += [f"layers 1/{row['narrower']}"] * (row["narrower"] > 1) + ["no mirrored copies"] * (not row["tta"])
    notes += [f"pixels {row['coarser']:g}×"] * (row["coarser"] > 1)
    return f"{row['data']} ({', '.join(notes)})"


def _equal(row: Row) -> str:
    found = row.get("equal_voxels")
    return MINUS if found is None else f"{100 * found:.4f} %"


def startup_tables(rows: Sequence[Row]) -> list[str]:
    heading = ["data", "autoseg, s", "nnunetv2, s", "ratio", "processor, ratio", "autoseg, peak MiB",
               "nnunetv2, peak MiB", "ratio"]
    return [markdown(heading, [[row["data"], *_both(row, "seconds"), times(row, "processor_seconds"),
                                *_both(row, "peak_mib")] for row in rows])]


def scaling_tables(rows: Sequence[Row]) -> list[str]:
    heading = ["decoded", "autoseg, s", "nnunetv2, s", "ratio", "autoseg, peak MiB", "nnunetv2, peak MiB", "ratio",
               "autoseg, ragged, s", "peak MiB"]
    return [markdown(heading, [[row["data"], *_both(row, "decode"), *_both(row, "peak_mib"),
                                *(figure(row[f"{OURS} ragged"], name) for name in ("decode", "peak_mib"))]
                               for row in rows if row["along"] == along]) for along in ("volume", "labels")]


def speeds_tables(rows: Sequence[Row]) -> list[str]:
    about = rows[0]
    how = "A network trained before" if about["trained"] else f"Trained for {about['minutes_of_training']:g} minutes"
    said = f"{how}; {about['cases']} validation cases of {about['data']}, exact Dice {about['exact_dice']:.4f}."
    heading = ["level", "Dice − exact's", "± (95 %)", "worst case", "times faster than exact", "computed in", "overlap",
               "copies of a window"]
    return [said, markdown(heading, [
        [row["level"], signed(cost["dice_change"]), signed(cost["dice_margin"]).lstrip("+"),
         signed(cost["worst_change"]),
         f"{number(cost['times_faster'])}×", cost["precision"], f"{cost['overlap']:g}",
         str(cost["copies"] or "all")]
        for row in rows for cost in row[OURS]])]


def signed(value: float | None) -> str:
    return MINUS if value is None else f"{value:+.4f}"


MAKERS: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "plan": plan_tables, "train": train_tables, "predict": predict_tables, "startup": startup_tables,
    "scaling": scaling_tables, "speeds": speeds_tables,
}
