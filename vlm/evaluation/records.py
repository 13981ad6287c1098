"""report.json: what an evaluation found."""

from typing import Literal

from autoseg.records import Record
from vlm.evaluation.suite_records import Metric
from vlm.model.records import Score
from vlm.schema import Hex64, Modality

LeakStatus = Literal["not checked", "none known", "removed", "unresolved", "same source"]


class PromptSensitivity(Record):
    """The set's metric with fewer sentences per class.

    sentences : of the class with the fewest. one : each class has its i-th sentence alone, for every i (mean, and the
    lowest and highest as `low` and `high`). some : drawn subsets of `some_size` sentences. all : every sentence.
    leave_one_out_std : standard deviation when one sentence of one class is left out, each in its turn; None where a
    class has only one.
    """

    metric: Metric
    sentences: int
    one: Score
    some_size: int | None = None
    some: Score | None = None
    all: float
    leave_one_out_std: float | None = None


class ProbeScore(Record):
    """Balanced accuracy on the test images of a classifier that was fitted to a share of the training images.

    share : of each class's training images. images : that many. mean, std : over `draws` draws (std None for one).
    low, high : ends of the 95 % interval over test images, of the mean of the draws.
    """

    share: float
    images: int
    draws: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None


class LeakFlag(Record):
    """What a corpus says of a set. said : for a person. prompts_in_corpus : sentences that are captions there."""

    status: LeakStatus
    said: str
    prompts_in_corpus: tuple[str, ...] = ()


class SetReport(Record):
    """One set of images with classes, measured.

    images : of each class, in order of the classes. groups : patients or volumes, where the set tells them.
    without_class : images left out since they have no class. unreadable : left out since they cannot be opened.
    images_expected : how many the published set has, where that is known. truncated : sentences that are longer than
    the model's context and were cut.
    metric : the one that stands for the set; `scores` has all. confusion : [true class][predicted class] images.
    probe, thumbnails : fitted to training images: on embeddings, and on pictures of 16 × 16 pixels.
    published : model → the same metric as a publication prints it, as a fraction.
    """

    name: str
    title: str
    modality: Modality
    metric: Metric
    images: dict[str, int]
    groups: int | None
    without_class: int = 0
    unreadable: int = 0
    images_expected: int | None = None
    truncated: int = 0
    scores: dict[Metric, Score]
    per_class: dict[str, float | None]
    confusion: tuple[tuple[int, ...], ...]
    prompts: dict[str, tuple[str, ...]]
    sensitivity: PromptSensitivity
    probe: tuple[ProbeScore, ...] = ()
    thumbnails: ProbeScore | None = None
    published: dict[str, float] = {}
    leak: LeakFlag
    features: Hex64 | None = None
    remarks: str = ""


class RetrievalReport(Record):
    """Retrieval on a set's test captions: recall at 1, 5 and 10, both ways.

    pairs : images with a caption. captions : distinct ones. truncated : longer than the model's context.
    recall : "image_to_text" or "text_to_image" → k → share of pairs.
    """

    name: str
    title: str
    modality: Modality
    pairs: int
    captions: int
    truncated: int
    groups: int | None
    recall: dict[str, dict[int, Score]]
    leak: LeakFlag


class GroupScore(Record):
    """Mean over the sets of a modality. metric : of each set's own metric. balanced_accuracy : of that.

    sets : their names. published : model → mean as a publication prints it, as a fraction.
    """

    sets: tuple[str, ...]
    metric: Score
    balanced_accuracy: Score
    published: dict[str, float] = {}


class EvaluationReport(Record):
    """report.json. Scores are fractions with the ends of their 95 % intervals.

    model, identity : name, and SHA-256 of the weights. trained_on : name and recipe hash of the corpus, as the model
    says.
    modalities : by modality. average : over all sets of the suite. absent : sets that were not on this disk, and were
    allowed to be absent; then there is no average. published_remarks : where the published figures are from.
    """

    format: Literal[1] = 1
    version: str
    suite: str
    title: str
    model: str
    identity: str
    trained_on: str
    seed: int
    resamples: int
    sets: tuple[SetReport, ...]
    retrieval: tuple[RetrievalReport, ...]
    modalities: dict[str, GroupScore]
    average: GroupScore | None
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    published_remarks: str = ""
