"""Metrics against scikit-learn and against counting pairs; the laws of their intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, roc_auc_score

from autoseg.errors import UserError
from vlm.evaluation import metrics
from vlm.evaluation.metrics import (
    class_margins,
    estimate_mean,
    estimate_metrics,
    estimate_predictions,
    interval,
    mean_estimate,
    measure,
    require_two_classes,
    resampled_weights,
    score_of,
)


def drawn(seed, classes, images=60, steps=None):
    """(scores, targets) of images of several classes, each class met at least once; `steps` makes ties."""
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(classes), rng.integers(classes, size=images - classes)])
    scores = rng.normal(size=(images, classes)) + 0.7 * (np.arange(classes) == targets[:, None])
    return (np.round(scores * steps) / steps if steps else scores), targets


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_against_scikit_learn(seed, classes):
    scores, targets = drawn(seed, classes)
    predicted = scores.argmax(1)
    assert measure("accuracy", scores, targets) == pytest.approx(accuracy_score(targets, predicted))
    assert measure("balanced_accuracy", scores, targets) == pytest.approx(balanced_accuracy_score(targets, predicted))
    margins = class_margins(scores)
    oracle = np.mean([roc_auc_score(targets == place, margins[:, place]) for place in range(classes)])
    assert measure("auc", scores, targets) == pytest.approx(oracle)
    assert (metrics.confusion_matrix(scores, targets) == confusion_matrix(targets, predicted)).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_resampled_metrics_are_those_of_weighted_images(classes):
    scores, targets = drawn(5, classes, steps=2)
    weights = next(resampled_weights(np.arange(len(targets)), np.random.default_rng(1), 4))
    found = estimate_metrics(scores, targets, np.arange(len(targets)), np.random.default_rng(1), 4)
    margins = class_margins(scores)
    for draw, weight in enumerate(weights):
        predicted = scores.argmax(1)
        assert found["accuracy"].draws[draw] == pytest.approx(accuracy_score(targets, predicted, sample_weight=weight))
        assert found["balanced_accuracy"].draws[draw] == pytest.approx(
            balanced_accuracy_score(targets, predicted, sample_weight=weight))
        areas = [roc_auc_score(targets == place, margins[:, place], sample_weight=weight) for place in range(classes)]
        assert found["auc"].draws[draw] == pytest.approx(np.mean(areas))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=14))
def test_auc_counts_ordered_pairs_and_ties_half(images):
    positive = np.array([one for one, _ in images])
    if positive.all() or not positive.any():
        return
    score = np.array([value for _, value in images], float)
    pairs = [1.0 if high > low else 0.5 * (high == low) for high in score[positive] for low in score[~positive]]
    scores = np.stack([np.zeros_like(score), score], 1)
    assert measure("auc", scores, positive.astype(int)) == pytest.approx(np.mean(pairs))


def test_of_two_classes_the_auc_goes_by_the_difference_of_the_scores():
    scores, targets = drawn(2, 2)
    difference = scores[:, 1] - scores[:, 0]
    assert measure("auc", scores, targets) == pytest.approx(roc_auc_score(targets, difference))
    assert measure("auc", scores[:, ::-1], 1 - targets) == pytest.approx(measure("auc", scores, targets))
    shifted = scores + np.random.default_rng(0).normal(size=(len(scores), 1))
    assert measure("auc", shifted, targets) == pytest.approx(measure("auc", scores, targets)), "bright images"


def test_a_model_that_says_one_thing_is_at_chance():
    targets = np.array([0, 0, 0, 1, 2])
    scores = np.tile([0.3, 0.2, 0.1], (5, 1))
    found = estimate_metrics(scores, targets, np.arange(5), np.random.default_rng(0), 200)
    assert found["balanced_accuracy"].value == pytest.approx(1 / 3) and found["auc"].value == 0.5
    assert found["accuracy"].value == 0.6
    assert np.nanmax(np.abs(found["auc"].draws - 0.5)) < 1e-12


def test_an_empty_class_counts_in_no_mean():
    scores, targets = drawn(3, 3)
    kept = targets != 2
    values = [measure(metric, scores[kept], targets[kept]) for metric in ("balanced_accuracy", "auc")]
    predicted = scores[kept].argmax(1)
    recalls = [np.mean(predicted[targets[kept] == place] == place) for place in range(2)]
    assert values[0] == pytest.approx(np.mean(recalls))
    margins = class_margins(scores[kept])
    areas = [roc_auc_score(targets[kept] == place, margins[:, place]) for place in range(2)]
    assert values[1] == pytest.approx(np.mean(areas))


def test_patients_are_drawn_whole():
    groups = np.array([3, 3, 1, 1, 1, 0, 7, 7])
    for weights in resampled_weights(groups, np.random.default_rng(0), 120):
        for patient in np.unique(groups):
            assert (weights[:, groups == patient] == weights[:, groups == patient][:, :1]).all()
        firsts = [np.flatnonzero(groups == patient)[0] for patient in np.unique(groups)]
        assert (weights[:, firsts].sum(1) == len(firsts)).all()


def test_copies_of_images_make_no_interval_narrower_when_they_are_one_patient():
    scores, targets = drawn(4, 2, 40)
    twice, alone = np.repeat(scores, 2, 0), np.arange(40)
    known = {name: estimate_metrics(*given, np.random.default_rng(0), 400)["accuracy"] for name, given in {
        "once": (scores, targets, alone), "as patients": (twice, np.repeat(targets, 2), np.repeat(alone, 2)),
        "as images": (twice, np.repeat(targets, 2), np.arange(80))}.items()}
    assert known["as patients"].draws == pytest.approx(known["once"].draws)
    assert known["as images"].draws.std() < 0.85 * known["once"].draws.std()


def test_the_interval_has_the_width_of_the_binomial():
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.7).astype(float)
    estimate = estimate_mean(values, np.arange(400), rng, 2000)
    low, high = interval(estimate.draws)
    error = np.sqrt(values.mean() * (1 - values.mean()) / 400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.01)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.01)
    score = score_of(estimate, 0.5)
    assert (score.value, score.low, score.high, score.chance) == (values.mean(), low, high, 0.5)


def test_a_single_patient_gives_no_interval_and_neither_does_a_mean_with_it():
    scores, targets = drawn(1, 2, 20)
    alone = estimate_metrics(scores, targets, np.zeros(20, int), np.random.default_rng(0), 100)["accuracy"]
    many = estimate_metrics(scores, targets, np.arange(20), np.random.default_rng(0), 100)["accuracy"]
    assert score_of(alone).low is None and score_of(many).low is not None and alone.value == many.value
    both = mean_estimate([alone, many])
    assert both.value == alone.value and score_of(both).low is None


def test_no_draws_give_no_interval():
    estimate = estimate_mean(np.ones(3), np.arange(3), np.random.default_rng(0), 0)
    assert score_of(estimate).low is None and estimate.value == 1.0
    assert interval(np.full(5, np.nan)) == (None, None)


def test_the_mean_of_sets_is_of_their_draws():
    rng = np.random.default_rng(0)
    one, other = (estimate_mean(rng.random(50), np.arange(50), rng, 300) for _ in range(2))
    both = mean_estimate([one, other])
    assert both.value == pytest.approx((one.value + other.value) / 2)
    assert both.draws.std() == pytest.approx(np.sqrt(one.draws.var() + other.draws.var()) / 2, rel=0.15)


def test_several_classifiers_are_averaged():
    targets = np.array([0, 0, 1, 1])
    predictions = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    values, estimate = estimate_predictions(predictions, targets, np.arange(4), np.random.default_rng(0), 50)
    assert values.tolist() == [1.0, 0.5] and estimate.value == 0.75


@pytest.mark.parametrize(("targets", "message"), [
    (np.array([1, 1, 1]), "all of its 3 images are of the class yes"), (np.empty(0, int), "it has no image")])
def test_a_single_class_is_refused(targets, message):
    with pytest.raises(UserError, match=message):
        require_two_classes(targets, ("no", "yes"), "knees")
