"""The tables of `vlm evaluate`: for the terminal, for report.md and for the page."""

from collections.abc import Sequence

from vlm.corpus.stats_tables import Table
from vlm.evaluation.records import EvaluationReport, GroupScore, LeakFlag, ProbeScore, SetReport
from vlm.evaluation.suite_records import Metric
from vlm.model.records import Score

METRIC_NAMES: dict[Metric, str] = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": "AUC"}
DIRECTION_NAMES = {"image_to_text": "image → caption", "text_to_image": "caption → image"}
LEAK_MARKS = {"unresolved": "! unresolved", "same source": "same source", "removed": "removed", "none known": "–",
              "not checked": "?"}
INTERVALS = ("Percent; in brackets the 95 % interval of a bootstrap over images, or over patients and volumes where "
             "the set tells them.")


def all_tables(report: EvaluationReport) -> tuple[Table, ...]:
    """Every table that has rows, in order."""
    tables = (sets(report), modalities(report), paper(report), probes(report), sensitivity(report), retrieval(report),
              leaks(report))
    return tuple(table for table in tables if table.rows)


def sets(report: EvaluationReport) -> Table:
    """Zero-shot results of every set."""
    rows = tuple((
        one.name, one.modality, f"{sum(one.images.values()):,}", "–" if one.groups is None else f"{one.groups:,}",
        str(len(one.images)), *(f"{with_interval(one.scores[metric])}{' *' * (metric == one.metric)}"
                                for metric in METRIC_NAMES),
        _chance(one.scores[one.metric]), LEAK_MARKS[one.leak.status]) for one in report.sets)
    header = ("set", "modality", "images", "patients", "classes", *METRIC_NAMES.values(), "chance *", "leak")
    return Table("Zero-shot classification", header, rows, f"{INTERVALS} *: the metric that stands for the set, and "
                 "its chance (for accuracy: always naming the most frequent class). AUC: mean over classes of one "
                 "against the rest. Leak: ! training images may be the set's; same source: trained on other images of "
                 "the same source; ?: not checked.", frozenset({0, 1, len(header) - 1}))


def modalities(report: EvaluationReport) -> Table:
    """Means over the sets of each modality, and over all."""
    groups = {**report.modalities, **({"all sets": report.average} if report.average is not None else {})}
    rows = tuple((name, str(len(group.sets)), with_interval(group.balanced_accuracy), _chance(group.balanced_accuracy),
                  with_interval(group.metric), "all" if group is report.average else ", ".join(group.sets))
                 for name, group in groups.items())
    header = ("modality", "sets", "balanced accuracy", "chance", "each set's metric", "of")
    return Table("Means over sets", header, rows,
                 "" if report.average is not None else "No mean over all: the suite's other sets were not measured.",
                 frozenset({0, 5}))


def paper(report: EvaluationReport) -> Table:
    """Published figures beside ours, single sets and means."""
    means: list[tuple[str, GroupScore]] = [(f"mean {name}", group) for name, group in report.modalities.items()]
    means += [("mean of all", report.average)] if report.average is not None else []
    lines: list[tuple[str, str, Score, dict[str, float]]] = [
        (one.name, METRIC_NAMES[one.metric], one.scores[one.metric], one.published) for one in report.sets]
    lines += [(name, "own", group.metric, group.published) for name, group in means]
    models = list(dict.fromkeys(model for *_, printed in lines for model in printed))
    rows = tuple((name, metric, with_interval(score), *(
        percent(printed[model]) if model in printed else "–" for model in models))
        for name, metric, score, printed in lines) if models else ()
    return Table("Beside the paper", ("set", "metric", "this model", *(f"paper: {model}" for model in models)), rows,
                 "Paper: as printed in publications, with their sentences and their copies of the sets, not measured "
                 "here. Our means are over the sets that were measured here, theirs over all of a modality. –: not "
                 f"published. {report.published_remarks}".rstrip(), frozenset({0, 1}))


def probes(report: EvaluationReport) -> Table:
    """Linear probes, beside zero-shot and the thumbnails."""
    having = [one for one in report.sets if one.probe]
    shares = list(dict.fromkeys(score.share for one in having for score in one.probe))
    rows = tuple((one.name, with_interval(one.scores["balanced_accuracy"]),
                  *(_probe(next((score for score in one.probe if score.share == share), None)) for share in shares),
                  f"{one.probe[-1].images:,}", _probe(one.thumbnails)) for one in having)
    header = ("set", "zero-shot", *(f"{100 * share:g} % of labels" for share in shares), "training images",
              "16 × 16 pixels, 100 %")
    return Table("Linear probes", header, rows, "Balanced accuracy of a logistic regression on embeddings; ± the "
                 "standard deviation over five draws of the labels, else the 95 % interval. 16 × 16 pixels: the same "
                 "on tiny pictures instead of embeddings, which see style and layout only: what does not beat it has "
                 "not been shown to see disease.")


def sensitivity(report: EvaluationReport) -> Table:
    """How results depend on the sentences."""
    rows = []
    for one in report.sets:
        found = one.sensitivity
        some = found.some
        std = found.leave_one_out_std
        rows.append((one.name, METRIC_NAMES[found.metric], str(found.sentences), _spread(found.one),
                     f"{_spread(some)} ({found.some_size})" if some else "–", percent(found.all),
                     "–" if std is None else f"{100 * std:.2f}"))
    header = ("set", "metric", "sentences", "one", "half of them", "all", "leave-one-out std")
    return Table("Dependence on the sentences", header, tuple(rows), "Percent. One: every class has its i-th sentence "
                 "alone (mean; lowest – highest over i). Half: twenty draws. Leave-one-out: one sentence of one class "
                 "is left out, each in its turn.", frozenset({0, 1}))


def retrieval(report: EvaluationReport) -> Table:
    """Recall both ways."""
    rows = tuple((one.name, DIRECTION_NAMES[direction], f"{one.pairs:,}", f"{one.captions:,}",
                  *(text for score in recalls.values() for text in (with_interval(score), _chance(score))),
                  str(one.truncated))
                 for one in report.retrieval for direction, recalls in one.recall.items())
    ks = list(next(iter(report.retrieval[0].recall.values()))) if report.retrieval else []
    header = ("set", "direction", "pairs", "captions", *(text for k in ks for text in (f"R@{k}", "chance")), "cut")
    return Table("Retrieval", header, rows, f"{INTERVALS} Captions: distinct ones; images with identical captions "
                 "count as correct for each other. Cut: captions longer than the model's context.", frozenset({0, 1}))


def leaks(report: EvaluationReport) -> Table:
    """What is known of images and sentences that training may have seen."""
    flags: dict[str, LeakFlag] = {one.name: one.leak for one in report.sets}
    flags |= {one.name: one.leak for one in report.retrieval}
    rows = tuple((name, flag.status, flag.said, str(len(flag.prompts_in_corpus)) if flag.status != "not checked" or
                  flag.prompts_in_corpus else "–") for name, flag in flags.items())
    return Table("What training may have seen", ("set", "images", "said", "sentences that are training captions"), rows,
                 texts=frozenset({0, 1, 2}))


def classes_of(one: SetReport) -> Table:
    """A set's classes: images, share found, sentences."""
    rows = tuple((name, f"{count:,}", "–" if (found := one.per_class[name]) is None else percent(found),
                  " / ".join(one.prompts[name])) for name, count in one.images.items())
    return Table(f"{one.name}: {one.title}", ("class", "images", "% found", "sentences"), rows, _about(one),
                 frozenset({0, 3}))


def percent(value: float) -> str:
    """A fraction as percent with one digit."""
    return f"{100 * value:.1f}"


def with_interval(score: Score) -> str:
    """"71.3 [65.0–77.1]" in percent."""
    if score.low is None or score.high is None:
        return percent(score.value)
    return f"{percent(score.value)} [{percent(score.low)}–{percent(score.high)}]"


def as_markdown(table: Table) -> str:
    """A heading, the note and a table in Markdown."""
    def line(cells: Sequence[str]) -> str:
        return " | ".join(["", *(" ".join(cell.replace("|", "\\|").split()) for cell in cells), ""]).strip()

    marks = [":--" if column in table.texts else "--:" for column in range(len(table.header))]
    body = [line(table.header), line(marks), *map(line, table.rows)]
    return "\n\n".join([f"## {table.title}", *([table.note] if table.note else []), "\n".join(body)])


def _about(one: SetReport) -> str:
    parts = [one.remarks] if one.remarks else []
    parts += [f"{one.without_class:,} images without a class were left out."] if one.without_class else []
    parts += [f"{one.unreadable:,} images could not be opened and were left out."] if one.unreadable else []
    empty = [name for name, count in one.images.items() if not count]
    parts += [f"No image of the class {', '.join(empty)}: it counts in no mean."] if empty else []
    return " ".join(parts)


def _probe(score: ProbeScore | None) -> str:
    if score is None:
        return "–"
    if score.std is not None:
        return f"{percent(score.mean)} ± {percent(score.std)}"
    return with_interval(Score(value=score.mean, low=score.low, high=score.high))


def _spread(score: Score) -> str:
    return f"{percent(score.value)} ({percent(score.low or 0.0)} – {percent(score.high or 0.0)})"


def _chance(score: Score) -> str:
    return "–" if score.chance is None else percent(score.chance)
