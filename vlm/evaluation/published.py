"""What a publication prints for the sets of a suite, beside ours."""

from collections.abc import Mapping

from vlm.evaluation.suite_records import PublishedFigures, PublishedModel
from vlm.schema import Modality


def average_of_groups(model: PublishedModel, set_counts: Mapping[Modality, int]) -> float:
    """The average over all sets that the means of the modalities imply, in percent.

    set_counts : sets of each modality.
    """
    total = sum(set_counts[modality] for modality in model.groups)
    return sum(mean * set_counts[modality] for modality, mean in model.groups.items()) / total


def of_set(published: PublishedFigures | None, name: str) -> dict[str, float]:
    """Model → its figure for a set, as a fraction."""
    return _fractions({label: model.sets.get(name) for label, model in _models(published)})


def of_modality(published: PublishedFigures | None, modality: Modality) -> dict[str, float]:
    """Model → its mean over the sets of a modality, as a fraction."""
    return _fractions({label: model.groups.get(modality) for label, model in _models(published)})


def of_average(published: PublishedFigures | None) -> dict[str, float]:
    """Model → its mean over all sets, as a fraction."""
    return _fractions({label: model.average for label, model in _models(published)})


def _models(published: PublishedFigures | None) -> list[tuple[str, PublishedModel]]:
    return list(published.models.items()) if published is not None else []


def _fractions(percent: Mapping[str, float | None]) -> dict[str, float]:
    return {label: round(value / 100, 6) for label, value in percent.items() if value is not None}
