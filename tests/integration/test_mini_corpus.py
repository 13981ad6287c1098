"""The mini-corpus from its real sources, end to end: its modalities, and nothing of its test splits in training."""

import io
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageOps

from vlm.commands.build_corpus import build_corpus
from vlm.corpus.pairing import load_thresholds
from vlm.corpus.stored_pairs import read_manifest, read_pairs, shard_path

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "vlm"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="shared/data/vlm is not on this machine")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini") / "corpus"
    assert build_corpus(output=folder, data=DATA, workers=2) == 0
    return folder


def test_all_twelve_sources_and_six_modalities_are_in_it(corpus):
    manifest = read_manifest(corpus)
    assert len(manifest.sources) == 12
    assert set(manifest.counts) == {"X-ray", "CT", "MRI", "Ultrasound", "Pathology", "Fundus"}
    for count in manifest.sources.values():
        assert count.pairs > 0 and count.rows == count.pairs + count.rejected + count.duplicates + count.leaks
    assert all(splits.get(name, 0) > 30 for splits in manifest.counts.values() for name in ("train", "val", "test"))


def test_no_training_image_is_a_test_image_or_of_a_test_patient(corpus):
    """By imagehash's own hash and by SHA-256 of the stored bytes, not by what the build recorded."""
    hashes, patients, records = {}, {}, {}
    for entry in read_manifest(corpus).shards:
        side = "test" if entry.split == "test" else "training"
        for pair in read_pairs(shard_path(corpus, entry.file)):
            with Image.open(io.BytesIO(pair.image)) as image:
                gray = image.convert("L")
                found = [imagehash.phash(one, hash_size=16).hash.reshape(-1) for one in (gray, ImageOps.mirror(gray))]
            hashes.setdefault((pair.record.modality, side), []).append(found)
            records.setdefault(side, set()).add(pair.record.sha256)
            if pair.record.patient:
                patients.setdefault(side, set()).add(pair.record.patient)
    assert not records["test"] & records["training"] and not patients["test"] & patients["training"]
    for modality, bits in load_thresholds().items():
        if modality == "mixed":
            continue
        train = np.array([found[0] for found in hashes[modality, "training"]], np.float32) * 2 - 1
        for flipped in (0, 1):
            test = np.array([found[flipped] for found in hashes[modality, "test"]], np.float32) * 2 - 1
            least = int(((train.shape[1] - train @ test.T) / 2).min())
            # Decoding at a smaller scale for speed moves a bit or two against imagehash's own reading.
            assert least > bits - 3, f"{modality}: {least} bits apart"
