"""Tables, verdicts and the picture of the study in generalization.py, from the lines of its results."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from generalization import ARMS, DIRECTIONS, SEEDS, SHIFTS
from jaxtyping import Float
from measuring import bootstrap_mean

DICE, NSD, DICE_INSIDE, NSD_INSIDE = range(4)
PUBLISHED = {"ct-mr": 88.63, "mr-ct": 83.05, "bssfp-lge": 86.69, "lge-bssfp": 87.67}
"""SLAug (Su et al. 2023): other splits, more cases, 2000 epochs; abdomen inside the annotated slices."""
TITLES = {"bssfp-lge": "bSSFP → LGE (heart)", "lge-bssfp": "LGE → bSSFP (heart)", "ct-mr": "CT → MR (abdomen)",
          "mr-ct": "MR → CT (abdomen)", "cxr": "X-rays under synthetic shifts"}  # fmt: skip
FAMILIES = {
    "none": frozenset[str](),
    "nnunet": frozenset({"gamma 2.5", "gamma 0.4", "low resolution"}),
    "gin": frozenset({"gamma 2.5", "gamma 0.4", "low resolution", "inversion"}),
    "slaug": frozenset({"gamma 2.5", "gamma 0.4", "inversion"}),
    "ccsdg": frozenset({"gamma 2.5", "gamma 0.4", "bias field"}),
}
"""Shifts that an arm's training imitates: nnU-Net changes gamma and resolution; random kernels have either sign; curves
per class are inverted at times; Fourier views change slow brightness. Rank normalization takes gamma out of any image,
whatever the arm."""
TEXT_GOAL = ("B2", "B4")
LOSS_ALLOWED, GAP_ALLOWED = 1.0, 3.0
SEED_COLORS = {"in": "#999999", "out": "#0072B2"}
CLASS_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7")


# ---------------------------------------------------------------- statistics
def case_scores(line: Mapping[str, Any], domain: str, measure: int = DICE) -> dict[str, float]:
    """Case → mean over its labels, in points; a label that is in neither mask does not count."""
    found = {case: [row[measure] for row in rows if row[measure] is not None]
             for case, rows in line["scores"].get(domain, {}).items()}
    return {case: 100 * float(np.mean(values)) for case, values in found.items() if values}


def domains_out(line: Mapping[str, Any]) -> list[str]:
    """Of the domains that a line holds scores for, those outside the training's."""
    return [domain for domain in line["scores"] if domain != "in"]


def outside_scores(line: Mapping[str, Any], measure: int = DICE, domains: Iterable[str] | None = None
                   ) -> dict[str, float]:
    """Case → mean over the domains (all that are outside the training's, by default)."""
    parts = [case_scores(line, domain, measure) for domain in (domains_out(line) if domains is None else domains)]
    return {case: float(np.mean([part[case] for part in parts])) for case in parts[0]} if parts else {}


def by_seed(lines: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {line["seed"]: line for line in sorted(lines, key=lambda one: one["seed"])}


def differences(ones: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], outside: bool = True
                ) -> Float[np.ndarray, " case"]:
    """Per case, `ones` minus `others` in Dice points: the mean over the seeds that both have; empty without any."""
    scores = outside_scores if outside else (lambda line: case_scores(line, "in"))
    first, second = by_seed(ones), by_seed(others)
    pairs = [(scores(first[seed]), scores(second[seed])) for seed in first if seed in second]
    pairs = [(one, other) for one, other in pairs if one and other]
    if not pairs:
        return np.empty(0)
    ids = sorted(set.intersection(*(set(one) & set(other) for one, other in pairs)))
    return np.array([[one[case] - other[case] for case in ids] for one, other in pairs]).mean(axis=0)


def interval_text(found: Float[np.ndarray, " case"]) -> str:
    if not found.size:
        return "–"
    mean, low, high = bootstrap_mean(found)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def grouped(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Direction → arm → lines by seed; directions and arms in the order of their declaration."""
    lines = list(lines)
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for direction in DIRECTIONS:
        for arm in ("A0", "A1", *(name for name in ARMS if name not in ("A0", "A1", "T")), "T"):
            members = sorted((line for line in lines if (line["direction"], line["arm"]) == (direction, arm)),
                             key=lambda one: one["seed"])
            if members:
                found.setdefault(direction, {})[arm] = members
    return found


# ---------------------------------------------------------------- tables
def print_tables(lines: Iterable[Mapping[str, Any]], base: str) -> None:
    """A table per direction, and what the declared comparisons came to."""
    for direction, arms in grouped(lines).items():
        print(f"\n**{TITLES[direction]}**\n")
        (print_shifts if direction == "cxr" else print_direction)(direction, arms, base)
        print()
        for sentence in verdicts(arms, base):
            print(f"* {sentence}")


def print_direction(direction: str, arms: Mapping[str, list[Mapping[str, Any]]], base: str) -> None:
    labels = next(iter(arms.values()))[0]["labels"]
    row(["arm", "normalization", "in domain (seeds)", "**out of domain** (seeds)", " / ".join(labels), "NSD",
         "annotated slices: Dice / NSD", "− A1 [95 %]", f"− {base} [95 %]", "in domain − A1 [95 %]", "steps/s"])
    row(["---"] * 11)
    for arm, members in arms.items():
        organs = [np.mean([100 * value for line in members for rows in line["scores"]["out"].values()
                           if (value := rows[place][DICE]) is not None]) for place in range(len(labels))]
        row([arm, members[0]["normalization"], with_seeds([mean(case_scores(line, "in")) for line in members]),
             with_seeds([mean(case_scores(line, "out")) for line in members], "**"),
             " / ".join(f"{value:.1f}" for value in organs),
             f"{np.mean([mean(case_scores(line, 'out', NSD)) for line in members]):.1f}",
             " / ".join(f"{np.mean([mean(case_scores(line, 'out', measure)) for line in members]):.1f}"
                        for measure in (DICE_INSIDE, NSD_INSIDE)),
             *comparisons(arm, members, arms, base), rate(members)])
    row(["SLAug, paper", "–", "–", f"{PUBLISHED[direction]:.2f}", *["–"] * 7])


def print_shifts(_: str, arms: Mapping[str, list[Mapping[str, Any]]], base: str) -> None:
    row(["arm", "normalization", "in domain (seeds)", *SHIFTS, "**all shifts** (seeds)", "imitated in training",
         "not imitated", "− A1 [95 %]", f"− {base} [95 %]", "in domain − A1 [95 %]", "steps/s"])
    row(["---"] * (10 + len(SHIFTS)))
    for arm, members in arms.items():
        imitated = FAMILIES[family(arm)]
        groups = [[shift for shift in SHIFTS if shift in imitated], [s for s in SHIFTS if s not in imitated]]
        row([arm, members[0]["normalization"], with_seeds([mean(case_scores(line, "in")) for line in members]),
             *(f"{np.mean([mean(case_scores(line, shift)) for line in members]):.1f}" for shift in SHIFTS),
             with_seeds([mean(outside_scores(line)) for line in members], "**"),
             *(f"{np.mean([mean(outside_scores(line, DICE, group)) for line in members]):.1f}" if group else "–"
               for group in groups),
             *comparisons(arm, members, arms, base), rate(members)])


def comparisons(arm: str, members: Sequence[Mapping[str, Any]], arms: Mapping[str, list[Mapping[str, Any]]],
                base: str) -> list[str]:
    """Differences out of domain from A1 and from the base, and in domain from A1."""
    asked = (("A1", True), (base, True), ("A1", False))
    return ["–" if arm == other else interval_text(differences(members, arms.get(other, ()), outside))
            for other, outside in asked]


def family(arm: str) -> str:
    """Which of `FAMILIES` an arm's augmentation belongs to."""
    settings = ARMS[arm].settings
    method = settings.get("domain_generalization", "nnunet")
    return "none" if settings.get("augment_intensity") is False else str(method)


def mean(scores: Mapping[str, float]) -> float:
    return float(np.mean(list(scores.values()))) if scores else float("nan")


def with_seeds(values: Sequence[float], around: str = "") -> str:
    """The mean, and the seeds in brackets."""
    if np.isnan(values).all():
        return "–"
    seeds = f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
    return f"{around}{np.mean(values):.1f}{around}{seeds}"


def rate(members: Sequence[Mapping[str, Any]]) -> str:
    return f"{np.mean([line['steps_per_second'] for line in members]):.2f}"


def row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |")


def verdicts(arms: Mapping[str, list[Mapping[str, Any]]], base: str) -> list[str]:
    """The declared decisions, as far as their runs are there."""
    said = []
    gain = differences(arms.get(base, ()), arms.get("A1", ()))
    if gain.size:
        loss = differences(arms[base], arms["A1"], outside=False)
        said.append(f"Primary comparison, {base} − A1: {interval_text(gain)} out of domain, {interval_text(loss)} in "
                    f"domain (at most {LOSS_ALLOWED:g} may be lost: {met(loss.mean() >= -LOSS_ALLOWED)}; never below "
                    f"A1: {met(gain.mean() >= 0)}).")
    gap = differences(arms.get(base, ()), arms.get("T", ()))
    if gap.size:
        said.append(f"{base} − T (trained on the target's own cases): {interval_text(gap)}; within {GAP_ALLOWED:g}: "
                    f"{met(gap.mean() >= -GAP_ALLOWED)}.")
    noise = differences(arms.get("B3", ()), arms.get("B5", ()))
    if noise.size:
        said.append(f"B3 − B5 (the same vectors rotated; 0 but for chance): {interval_text(noise)}.")
    return [*said, *text_verdict(arms)]


def text_verdict(arms: Mapping[str, list[Mapping[str, Any]]]) -> list[str]:
    """Words help only if both intervals lie above 0: against random vectors, and against each other's."""
    found = {other: differences(arms.get("B5", ()), arms.get(other, ())) for other in TEXT_GOAL}
    if not all(values.size for values in found.values()):
        return []
    helps = all(bootstrap_mean(values)[1] > 0 for values in found.values())
    end = ("words help beyond random vectors on this data" if helps
           else "no measurable benefit of wording over random vectors on this data")
    return [", ".join(f"B5 − {other}: {interval_text(values)}" for other, values in found.items()) + f": {end}."]


def met(reached: bool) -> str:
    return "met" if reached else "missed"


# ---------------------------------------------------------------- picture
def draw_figure(lines: Iterable[Mapping[str, Any]], base: str, pictures: Path | None, path: Path) -> None:
    """Above: Dice out of domain per arm and direction. Below: source, target, reference, masks of A1 and the base."""
    from matplotlib.figure import Figure

    found = grouped(lines)
    shown = {direction: seed for direction in found if pictures is not None
             and (seed := seed_with_pictures(direction, base, pictures)) is not None}
    most = max(len(arms) for arms in found.values())
    above = 1.2 + 0.3 * most
    figure = Figure(figsize=(14, above + 2.7 * len(shown)), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(above, max(2.7 * len(shown), 0.01)))
    axes = upper.subplots(1, len(found), squeeze=False)[0]
    for axis, (direction, arms) in zip(axes, found.items(), strict=True):
        draw_dots(axis, direction, arms)
    if shown and pictures is not None:
        grid = lower.subplots(len(shown), 5, squeeze=False)
        for cells, (direction, seed) in zip(grid, shown.items(), strict=True):
            draw_slices(cells, direction, (base, seed), pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def seed_with_pictures(direction: str, base: str, pictures: Path) -> int | None:
    """The first seed whose masks of both A1 and the base were kept."""
    kept = (seed for seed in SEEDS if all((pictures / f"{direction}-{arm}-{seed}-out.npz").exists()
                                          for arm in (base, "A1")))
    return next(kept, None)


def draw_dots(axes: Any, direction: str, arms: Mapping[str, list[Mapping[str, Any]]]) -> None:
    """Per arm: small points are seeds, the large one their mean with the interval over cases, gray in domain."""
    for height, (_, members) in enumerate(reversed(arms.items())):
        cases = [outside_scores(line) for line in members]
        averaged = np.array([np.mean([one[case] for one in cases]) for case in cases[0]])
        middle, low, high = bootstrap_mean(averaged)
        axes.plot([low, high], [height, height], color=SEED_COLORS["out"], linewidth=1.5)
        axes.plot([mean(one) for one in cases], [height] * len(cases), ".", color=SEED_COLORS["out"], alpha=0.5)
        axes.plot(middle, height, "o", color=SEED_COLORS["out"])
        inside = [mean(case_scores(line, "in")) for line in members]
        axes.plot(np.mean(inside), height, "D", color=SEED_COLORS["in"], markersize=4)
    if direction in PUBLISHED:
        axes.axvline(PUBLISHED[direction], color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(arms)), list(reversed(arms)), fontsize="small")
    axes.set_xlim(0, 100)
    axes.set_title(TITLES[direction], fontsize="small", loc="left")
    axes.set_xlabel("Dice (%): blue out of, gray in domain;\ndotted: SLAug's paper", fontsize="x-small")
    axes.grid(axis="x", alpha=0.25)


def draw_slices(cells: Sequence[Any], direction: str, base_and_seed: tuple[str, int], pictures: Path) -> None:
    base, seed = base_and_seed
    source, plain, best = (np.load(pictures / f"{direction}-{name}.npz", allow_pickle=False)
                           for name in (f"{base}-{seed}-in", f"A1-{seed}-out", f"{base}-{seed}-out"))
    before, after = TITLES[direction].partition(" (")[0].split(" → ")
    drawn = [(f"{before}, reference", source["image"], source["reference"]),
             (after, best["image"], None), ("reference", best["image"], best["reference"]),
             ("A1", plain["image"], plain["predicted"]), (base, best["image"], best["predicted"])]
    for axes, (title, image, mask) in zip(cells, drawn, strict=True):
        low, high = np.percentile(image, (0.5, 99.5))
        axes.imshow(image, cmap="gray", vmin=low, vmax=high)
        for value, color in enumerate(CLASS_COLORS, start=1):
            if mask is not None and (mask == value).any():
                axes.contour(mask == value, levels=[0.5], colors=color, linewidths=1.2)
        axes.set_title(title, fontsize="small", loc="left")
        axes.axis("off")
