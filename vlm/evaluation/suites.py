"""A model on the sets of a suite: everything that report.json holds."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from autoseg import __version__
from autoseg.errors import UserError, all_of
from vlm.corpus.stored_pairs import read_manifest, require_shards
from vlm.evaluation.corpus_sets import is_corpus, read_corpus_set
from vlm.evaluation.features import (
    Features,
    ImageTextEmbedder,
    image_features,
    require_opened,
    text_features,
)
from vlm.evaluation.image_sets import (
    ImageSet,
    read_image_set,
    require_classes,
    require_train_classes,
)
from vlm.evaluation.leak_flags import leak_flags
from vlm.evaluation.linear_probe import THUMBNAIL_C, ProbeData, probe, thumbnails, train_rows
from vlm.evaluation.metrics import (
    Estimate,
    confusion_matrix,
    estimate_metrics,
    mean_estimate,
    require_two_classes,
    score_of,
)
from vlm.evaluation.prompt_sensitivity import prompt_sensitivity
from vlm.evaluation.published import of_average, of_modality, of_set
from vlm.evaluation.records import (
    EvaluationReport,
    GroupScore,
    LeakFlag,
    ProbeScore,
    RetrievalReport,
    SetReport,
)
from vlm.evaluation.retrieval import retrieval_recall
from vlm.evaluation.suite_files import SetPlan, read_published
from vlm.evaluation.suite_records import Metric, PublishedFigures, Suite
from vlm.evaluation.zero_shot import class_scores, class_vectors
from vlm.schema import Modality

ReadSet = Callable[[SetPlan], ImageSet | None]
AVERAGE_NEEDS_ALL = "No average over the suite: it needs all of its sets."


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """seed : of resampling, of drawn sentences and training images. resamples : for the intervals.
    available : sets, classes and images that are not there are left out instead of refused.
    with_probes : also fit linear probes, on embeddings and on thumbnails.
    cache : folder for embeddings; None keeps none.
    """

    seed: int = 0
    resamples: int = 1000
    available: bool = False
    with_probes: bool = True
    cache: Path | None = None


@dataclass(frozen=True)
class MeasuredSet:
    """A set's report and the draws behind its scores, from which means over sets get their intervals."""

    report: SetReport
    estimates: Mapping[Metric, Estimate]


def evaluate_suite(
    embedder: ImageTextEmbedder, suite: Suite, plans: Sequence[SetPlan], data: Path, options: EvaluationOptions,
    corpus: Path | None = None,
) -> EvaluationReport:
    """Measure a model on sets of a suite (`suite_files.read_suite`, `choose_sets`).

    Parameters
    ----------
    data : folder of the sets' folders, or a built corpus that holds them as sources.
    corpus : what the model was trained on, to flag sets that it may share images with.

    Raises
    ------
    UserError : sets that are not there, all of them together; labels, classes or images that cannot be used.
    """
    sets = _read_sets(plans, _reader(data), data, options)
    flags = leak_flags(plans, corpus)
    published = read_published(suite.published) if suite.published is not None else None
    measured: list[MeasuredSet] = []
    retrieval: list[RetrievalReport] = []
    for images in sets:
        name = images.plan.name
        features = image_features(embedder, name, images.files, options.cache)
        if not options.available:
            require_opened(features, name, images.files[0].root)
        kept = images.kept(features.opened)
        if images.plan.classes:
            measured.append(measure_set(embedder, kept, features, flags[name], options, published))
        if images.plan.captions is not None:
            retrieval.append(_measure_retrieval(embedder, kept, features, flags[name], options))
    present = {images.plan.name for images in sets}
    return EvaluationReport(
        version=__version__, suite=suite.name, title=suite.title or suite.name, model=embedder.name,
        identity=embedder.identity, trained_on=_trained_on(embedder), seed=options.seed, resamples=options.resamples,
        sets=tuple(one.report for one in measured), retrieval=tuple(retrieval),
        modalities=_modality_scores(measured, published), average=_average(measured, suite, published),
        absent=tuple(plan.name for plan in plans if plan.name not in present),
        notes=_notes(embedder, corpus, len(sets) < len(suite.sets), measured),
        published_remarks=published.remarks if published is not None else "",
    )


def measure_set(
    embedder: ImageTextEmbedder, images: ImageSet, features: Features, flag: LeakFlag, options: EvaluationOptions,
    published: PublishedFigures | None = None,
) -> MeasuredSet:
    """Zero-shot classification of a set, its sensitivity to the sentences, and linear probes where it has a train part.

    Parameters
    ----------
    images : those that could be opened, in the order of `features.vectors`.

    Raises
    ------
    UserError : images of one class only; or, unless `options.available`, a class without test or training images.
    """
    plan, tested = images.plan, images.tested
    targets, groups = images.targets[tested], images.groups[tested]
    require_two_classes(targets, plan.classes, plan.name)
    if not options.available:
        require_classes(images)
        if options.with_probes:
            require_train_classes(images)
    rng = _generator(options.seed, plan.name)
    sentences = _sentence_vectors(embedder, plan)
    vectors = features.vectors[tested]
    scores = class_scores(vectors, class_vectors(sentences))
    estimates = estimate_metrics(scores, targets, groups, rng, options.resamples)
    confusion = confusion_matrix(scores, targets)
    counts = confusion.sum(1)
    probes, small = _probes(images, features, rng, options) if options.with_probes else ((), None)
    report = SetReport(
        name=plan.name, title=plan.title, modality=plan.modality, metric=plan.metric,
        images={name: int(count) for name, count in zip(plan.classes, counts, strict=True)},
        groups=_group_count(images), without_class=int((~images.is_train & ~tested).sum()),
        unreadable=len(features.problems), images_expected=plan.images_expected,
        truncated=embedder.count_truncated([text for texts in plan.prompts.values() for text in texts]),
        scores={metric: score_of(found, _chance(metric, counts)) for metric, found in estimates.items()},
        per_class={name: float(confusion[place, place] / count) if (count := counts[place]) else None
                   for place, name in enumerate(plan.classes)},
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion), prompts=dict(plan.prompts),
        sensitivity=prompt_sensitivity(plan.metric, vectors, targets, sentences, rng), probe=probes, thumbnails=small,
        published=of_set(published, plan.name), leak=flag, features=features.identity, remarks=plan.remarks,
    )
    return MeasuredSet(report, estimates)


def _reader(data: Path) -> ReadSet:
    if not is_corpus(data):
        return lambda plan: read_image_set(plan, data)
    manifest = read_manifest(data)
    require_shards(data, manifest)
    return lambda plan: read_corpus_set(plan, data, manifest)


def _read_sets(
    plans: Sequence[SetPlan], read: ReadSet, data: Path, options: EvaluationOptions
) -> list[ImageSet]:
    """The sets that are there. UserError: some are not and may not be absent; or none is there at all."""
    if not data.is_dir():
        raise UserError(f"{data} {'is no folder' if data.exists() else 'does not exist'}; the folder of the evaluation "
                        "sets was expected.\n"
                        "Give the folder whose subfolders are the sets, or a built corpus, with --data.")
    found = [(plan, read(plan)) for plan in plans]
    sets = [images for _, images in found if images is not None]
    absent = [f"{plan.name}: {_expected(plan, data)}" for plan, images in found if images is None]
    if absent and (not options.available or not sets):
        raise all_of(absent, f"{len(absent)} of {len(plans)} sets are not in {data}:",
                     "Get the sets, name those that are there with --sets, or give --available to measure them only."
                     if sets else "Give the folder whose subfolders are the sets with --data.", shown=len(absent))
    return sets


def _expected(plan: SetPlan, data: Path) -> str:
    if is_corpus(data):
        return f"the corpus has no test pairs of the source {plan.source or '(none is named)'}"
    listing = plan.listing
    wanted = listing.index or ", ".join((Path(listing.image_root) / glob).as_posix() for glob in listing.glob)
    return f"{(Path(plan.folder) / wanted).as_posix() if listing.index else f'{plan.folder}: {wanted}'} is not there"


def _sentence_vectors(embedder: ImageTextEmbedder, plan: SetPlan) -> list[np.ndarray]:
    """Vectors of each class's sentences."""
    sentences = [sentence for name in plan.classes for sentence in plan.prompts[name]]
    vectors = text_features(embedder, sentences)
    ends = np.cumsum([len(plan.prompts[name]) for name in plan.classes])
    return np.split(vectors, ends[:-1])


def _probes(
    images: ImageSet, features: Features, rng: np.random.Generator, options: EvaluationOptions
) -> tuple[tuple[ProbeScore, ...], ProbeScore | None]:
    """(of embeddings, of thumbnails); nothing where the set has no training images."""
    train, tested = train_rows(images.is_train, images.targets), images.tested
    if not train.any():
        return (), None

    def data_of(inputs: np.ndarray) -> ProbeData:
        return ProbeData(inputs[train], images.targets[train], inputs[tested], images.targets[tested],
                         images.groups[tested])

    small = probe(data_of(thumbnails(images.files)), rng, options.resamples, (1.0,), THUMBNAIL_C)
    return probe(data_of(features.vectors), rng, options.resamples), small[0] if small else None


def _measure_retrieval(
    embedder: ImageTextEmbedder, images: ImageSet, features: Features, flag: LeakFlag, options: EvaluationOptions
) -> RetrievalReport:
    plan = images.plan
    with_caption = ~images.is_train & np.array([bool(caption) for caption in images.captions], bool)
    captions = [images.captions[index] for index in np.flatnonzero(with_caption)]
    distinct = list(dict.fromkeys(captions))
    if len(distinct) < 2:
        raise UserError(f"{plan.name}: {len(distinct)} distinct captions of test images in the column "
                        f"{plan.captions}; two are needed.\nComplete the set, or leave it out of --sets.")
    rng = _generator(options.seed, f"{plan.name} retrieval")
    recall = retrieval_recall(features.vectors[with_caption], text_features(embedder, captions), captions,
                              images.groups[with_caption], rng, options.resamples)
    return RetrievalReport(
        name=plan.name, title=plan.title, modality=plan.modality, pairs=len(captions), captions=len(distinct),
        truncated=embedder.count_truncated(distinct), recall=recall, leak=flag,
        groups=len(np.unique(images.groups[with_caption])) if plan.group is not None else None)


def _modality_scores(
    measured: Sequence[MeasuredSet], published: PublishedFigures | None
) -> dict[str, GroupScore]:
    modalities: list[Modality] = list(dict.fromkeys(one.report.modality for one in measured))
    return {modality: _group_score([one for one in measured if one.report.modality == modality],
                                   of_modality(published, modality)) for modality in modalities}


def _average(
    measured: Sequence[MeasuredSet], suite: Suite, published: PublishedFigures | None
) -> GroupScore | None:
    """Over all sets with classes; None unless every set of the suite was measured."""
    found = {one.report.name for one in measured}
    wanted = {one.name for one in suite.sets if one.classes or one.listing is None}
    return _group_score(measured, of_average(published)) if wanted and wanted <= found else None


def _group_score(measured: Sequence[MeasuredSet], printed: dict[str, float]) -> GroupScore:
    return GroupScore(
        sets=tuple(one.report.name for one in measured),
        metric=score_of(mean_estimate([one.estimates[one.report.metric] for one in measured])),
        balanced_accuracy=score_of(mean_estimate([one.estimates["balanced_accuracy"] for one in measured]),
                                   float(np.mean([one.report.scores["balanced_accuracy"].chance or 0.0
                                                  for one in measured]))),
        published=printed,
    )


def _trained_on(embedder: ImageTextEmbedder) -> str:
    training = embedder.record.training if embedder.record is not None else None
    return "not stated" if training is None else f"{training.corpus}, recipe {training.corpus_recipe}"


def _notes(
    embedder: ImageTextEmbedder, corpus: Path | None, is_part: bool, measured: Sequence[MeasuredSet]
) -> tuple[str, ...]:
    notes = [AVERAGE_NEEDS_ALL] if is_part else []
    counts = {one.report.name: (sum(one.report.images.values()), one.report.images_expected) for one in measured}
    if others := [f"{name} ({found:,} of {published:,})" for name, (found, published) in counts.items()
                  if published is not None and found != published]:
        notes.append(f"Sets with another number of images than published: {', '.join(others)}.")
    if cut := [f"{one.report.name} ({one.report.truncated})" for one in measured if one.report.truncated]:
        notes.append(f"Sentences that are longer than the model's context and were cut: {', '.join(cut)}.")
    training = embedder.record.training if embedder.record is not None else None
    if corpus is not None and training is not None and read_manifest(corpus).recipe != training.corpus_recipe:
        notes.append(f"The model says that it was trained on {training.corpus} (recipe {training.corpus_recipe}), "
                     f"which is not the corpus {corpus.resolve().name} whose overlaps are shown.")
    return tuple(notes)


def _group_count(images: ImageSet) -> int | None:
    return len(np.unique(images.groups[images.tested])) if images.plan.group is not None else None


def _chance(metric: Metric, counts: Int[np.ndarray, " class"]) -> float:
    """What can be had without looking: for accuracy, by always naming the most frequent class."""
    return {"accuracy": float(counts.max() / counts.sum()), "balanced_accuracy": 1 / len(counts), "auc": 0.5}[metric]


def _generator(seed: int, name: str) -> np.random.Generator:
    """Of a set alone: its draws do not depend on which other sets are measured."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
