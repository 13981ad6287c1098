"""Linear probes: what they must find, and must not; thumbnails; retrieval's recall with its intervals."""

import numpy as np
import pytest
from evaluation_layouts import picture
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from vlm.corpus.image_files import ImageFile
from vlm.evaluation.linear_probe import EMBEDDING_C, ProbeData, probe, thumbnails
from vlm.evaluation.retrieval import retrieval_recall
from vlm.evaluation.zero_shot import unit


def data_of(seed, distance, classes=3, train=240, test=90):
    """Clouds around one point per class, `distance` apart."""
    rng = np.random.default_rng(seed)
    centers = distance * np.eye(8)[:classes]

    def drawn(count):
        targets = np.arange(count) % classes
        return centers[targets] + rng.normal(size=(count, 8)), targets

    inputs, targets = drawn(train)
    tested, test_targets = drawn(test)
    return ProbeData(inputs, targets, tested, test_targets, np.arange(test))


def test_classes_that_lie_apart_are_found_and_others_are_not():
    found = probe(data_of(0, 12.0), np.random.default_rng(0), 100)
    assert [score.share for score in found] == [0.01, 0.1, 1.0]
    assert [score.images for score in found] == [3, 24, 240] and [score.draws for score in found] == [5, 5, 1]
    assert found[-1].mean == 1.0 and found[0].mean > 0.95
    assert found[0].std is not None and found[-1].std is None
    nothing = probe(data_of(1, 0.0, test=900), np.random.default_rng(0), 100)
    assert all(abs(score.mean - 1 / 3) < 0.06 for score in nothing)


def test_with_all_labels_it_is_scikit_learns_regression_on_centered_inputs():
    data = data_of(2, 1.5)
    spread = np.sqrt(np.square(data.train - data.train.mean(0)).mean())
    train, test = ((inputs - data.train.mean(0)) / spread for inputs in (data.train, data.test))
    oracle = LogisticRegression(C=EMBEDDING_C, max_iter=5000).fit(train, data.train_targets).predict(test)
    found = probe(data, np.random.default_rng(0), 200, (1.0,))[0]
    assert found.mean == pytest.approx(balanced_accuracy_score(data.test_targets, oracle))
    assert found.low < found.mean < found.high


def test_scale_and_offset_of_the_inputs_do_not_matter():
    data = data_of(3, 1.5)
    moved = ProbeData(5 + 1000 * data.train, data.train_targets, 5 + 1000 * data.test, data.test_targets, data.groups)
    first, second = (probe(one, np.random.default_rng(0), 50) for one in (data, moved))
    assert [score.mean for score in first] == pytest.approx([score.mean for score in second], abs=0.03)


def test_every_class_is_drawn_however_small_the_share():
    data = data_of(4, 12.0, train=30)
    rare = np.concatenate([np.flatnonzero(data.train_targets != 2), np.flatnonzero(data.train_targets == 2)[:1]])
    found = probe(ProbeData(data.train[rare], data.train_targets[rare], data.test, data.test_targets, data.groups),
                  np.random.default_rng(0), 50)
    assert found[0].images == 3 and found[0].mean > 0.9


def test_one_image_of_each_of_many_classes_is_no_reason_for_a_warning():
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(24), 3)
    inputs = np.eye(24)[targets] + 0.01 * rng.normal(size=(72, 24))
    found = probe(ProbeData(inputs, targets, inputs, targets, np.arange(72)), rng, 20)  # warnings fail tests
    assert found[0].images == 24 and found[-1].mean == 1.0


def test_training_images_of_one_class_teach_nothing():
    data = data_of(5, 1.0)
    alone = np.zeros_like(data.train_targets)
    assert probe(ProbeData(data.train, alone, data.test, data.test_targets, data.groups),
                 np.random.default_rng(0), 50) == ()


def test_thumbnails_are_rows_of_colors(tmp_path):
    for number in (0, 255):
        picture(tmp_path / f"{number}.png", number)
    rows = thumbnails([ImageFile(tmp_path, "0.png"), ImageFile(tmp_path, "255.png")])
    assert rows.shape == (2, 16 * 16 * 3)
    assert rows[0].reshape(16, 16, 3)[5, 7] == pytest.approx(np.array([8, 8, 100]) / 255)
    assert rows[1].reshape(16, 16, 3)[0, 0] == pytest.approx(np.array([248, 248, 100]) / 255)


def test_recall_both_ways_with_intervals_over_patients():
    rng = np.random.default_rng(0)
    images = unit(rng.normal(size=(60, 32)))
    captions = [f"caption {number // 2}" for number in range(60)]
    texts = np.repeat(unit(images[::2] + images[1::2]), 2, 0)
    found = retrieval_recall(images, texts, captions, np.arange(60) // 2, rng, 200)
    assert set(found) == {"image_to_text", "text_to_image"} and set(found["image_to_text"]) == {1, 5, 10}
    for recalls in found.values():
        assert recalls[1].value > 0.9 and recalls[1].value <= recalls[5].value <= recalls[10].value
        assert recalls[1].low <= recalls[1].value <= recalls[1].high
    assert found["image_to_text"][5].chance == pytest.approx(5 / 30)
    shuffled = retrieval_recall(images, texts[rng.permutation(60)], captions, np.arange(60) // 2, rng, 200)
    assert shuffled["image_to_text"][10].value < 0.65
