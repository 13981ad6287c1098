"""Scores of a validation: intervals over patients, and none where they could only mislead."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from corpus_folder import make_image
from torch.nn import functional as F

from vlm.model.retrieval import rank_pairs
from vlm.training.loss import Keys
from vlm.training.validation import Validation, ValidationSet, validate

IMAGES = np.eye(12)


def of(texts):
    return Validation({"infonce": 1.0}, rank_pairs(IMAGES, texts, [f"caption {row}" for row in range(12)]))


@pytest.mark.parametrize("patients", [1, 2, 12])
def test_one_patient_gives_no_interval(patients):
    numbers = np.arange(12) % patients
    good, bad = of(IMAGES), of(-IMAGES)
    gain, score = good.gain_over(bad, numbers), good.scores(numbers)["text_to_image_r5"]
    assert gain.value == 1 and score.value == 1
    expected = (None, None) if patients == 1 else (1.0, 1.0)
    assert (gain.low, gain.high) == (score.low, score.high) == expected


def test_losses_are_float32_whatever_the_towers_compute_in():
    images, texts = F.normalize(torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)), dim=2)
    embedder = SimpleNamespace(logit_scale=14.0, device=torch.device("cpu"), dimension=5,
                               encode_images=lambda _: images, encode_texts=lambda _: texts)
    data = ValidationSet((make_image(0),) * 6, tuple("abcdef"), Keys(torch.arange(6), torch.arange(6)), np.arange(6))
    expected = validate(embedder, data, -10.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert validate(embedder, data, -10.0).losses == expected.losses
