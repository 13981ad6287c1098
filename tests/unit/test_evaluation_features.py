"""Embeddings are kept for a model and its images, and for nothing else."""

import numpy as np
import pytest
import torch
from corpus_folder import CorpusFolder, make_pair
from evaluation_layouts import FakeEmbedder, picture
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from autoseg.errors import UserError
from vlm.corpus.image_files import ImageFile
from vlm.evaluation.features import image_features, open_picture, require_opened, text_features

VECTORS = {number: np.eye(4)[number % 4] for number in range(256)}


@pytest.fixture
def files(tmp_path):
    for number in range(6):
        picture(tmp_path / "set" / f"{number}.png", number)
    return [ImageFile(tmp_path / "set", f"{number}.png") for number in range(6)]


def embedder_of(**changes):
    return FakeEmbedder(**{"vectors": VECTORS, "sentences": {}, **changes})


def test_vectors_come_in_the_order_of_the_files(files):
    found = image_features(embedder_of(), "set", files[::-1], None)
    assert found.vectors == pytest.approx(np.stack([VECTORS[number] for number in range(5, -1, -1)]))
    assert found.opened.all() and not found.problems


def test_a_second_run_embeds_nothing(files, tmp_path):
    first, second = embedder_of(), embedder_of()
    kept = image_features(first, "set", files, tmp_path / "cache")
    again = image_features(second, "another name", files, tmp_path / "cache")
    assert (first.embedded, second.embedded) == (6, 0)
    assert (again.vectors == kept.vectors).all() and again.identity == kept.identity


@pytest.mark.parametrize("change", ["image", "model", "architecture", "resizing", "order"])
def test_whatever_shapes_an_embedding_is_part_of_the_key(files, tmp_path, change):
    image_features(embedder_of(), "set", files, tmp_path / "cache")
    other = embedder_of(identity="e" * 64) if change == "model" else embedder_of()
    if change == "architecture":  # the same weights, another activation in the config
        other.architecture = "76543210"
    if change == "image":
        picture(files[0].root / "0.png", 9)
    if change == "resizing":
        other.transform = lambda image: FakeEmbedder.transform(other, image.transpose(Image.Transpose.ROTATE_90)) + 1
    image_features(other, "set", files[::-1] if change == "order" else files, tmp_path / "cache")
    assert other.embedded == 6


def test_weights_that_lie_in_no_file_are_never_looked_up(files, tmp_path):
    for _ in range(2):
        embedder = embedder_of(identity="")
        image_features(embedder, "set", files, tmp_path / "cache")
        assert embedder.embedded == 6
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_computed_again(files, tmp_path):
    image_features(embedder_of(), "set", files, tmp_path / "cache")
    path = next((tmp_path / "cache").iterdir())
    path.write_bytes(path.read_bytes()[:50])
    embedder = embedder_of()
    image_features(embedder, "set", files, tmp_path / "cache")
    assert embedder.embedded == 6
    image_features(embedder, "set", files, tmp_path / "cache")
    assert embedder.embedded == 6


@pytest.mark.parametrize("edit", [
    lambda kept, said: (kept | {"vectors": kept["vectors"][:2]}, said),
    lambda kept, said: (kept | {"vectors": kept["vectors"] * np.nan}, said),
    lambda kept, said: (kept | {"opened": kept["opened"] * 0}, said),
    lambda kept, said: (kept, said | {"images": "f" * 64}),
    lambda kept, said: (kept, {"images": said["images"]}),
])
def test_a_cache_that_was_edited_or_is_of_other_images_is_computed_again(files, tmp_path, edit):
    expected = image_features(embedder_of(), "set", files, tmp_path / "cache")
    path = next((tmp_path / "cache").iterdir())
    with safe_open(path, "np") as stored:
        kept, said = edit({name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata())  # noqa: SIM118
    save_file(kept, path, said)
    embedder = embedder_of()
    found = image_features(embedder, "set", files, tmp_path / "cache")
    assert embedder.embedded == 6 and (found.vectors == expected.vectors).all()


def test_images_that_cannot_be_used_are_told_and_left_out(files, tmp_path):
    (files[2].root / "2.png").unlink()
    (files[4].root / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for _ in range(2):  # the second time from the cache
        found = image_features(embedder_of(), "set", files, tmp_path / "cache")
        assert found.opened.tolist() == [True, True, False, True, False, True] and len(found.vectors) == 4
        with pytest.raises(UserError, match=r"set: 2 of 6 images(.|\n)*2.png: the file does not exist(.|\n)*4.png"):
            require_opened(found, "set", tmp_path)


def test_a_model_that_has_diverged_is_named(files):
    embedder = embedder_of()
    embedder.embed_pixels = lambda pixels: torch.full((len(pixels), 4), float("nan"))
    with pytest.raises(UserError, match="fake gives embeddings that are no numbers"):
        image_features(embedder, "set", files, None)


def test_pictures_become_eight_bits_as_in_a_corpus(tmp_path):
    deep = (np.arange(400).reshape(20, 20) * 100).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    shown = open_picture(ImageFile(tmp_path, "deep.png"))
    assert shown.mode == "L" and np.ptp(np.asarray(shown)) > 200
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(open_picture(ImageFile(tmp_path, "clear.png"))).min() == 255


def test_images_inside_shards_are_read_there(tmp_path):
    pairs = [make_pair("toys", row, split="test") for row in range(3)]
    corpus = CorpusFolder(tmp_path / "corpus", pairs).write()
    shard = next((corpus / "shards").iterdir())
    shown = open_picture(ImageFile(corpus, f"shards/{shard.name}!toys_00000001.jpg"))
    assert shown.size == (40, 30)


def test_equal_sentences_are_embedded_once():
    embedder = embedder_of(sentences={"a": VECTORS[1], "b": VECTORS[2]})
    asked = []
    embed = embedder.encode_texts
    embedder.encode_texts = lambda texts: asked.extend(texts) or embed(texts)
    found = text_features(embedder, ["a", "b", "a", "a"])
    assert asked == ["a", "b"] and (found == np.stack([VECTORS[number] for number in (1, 2, 1, 1)])).all()
