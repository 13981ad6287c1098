"""Batches are a function of (seed, step): from any first step, by any number of threads, over several processes."""

from dataclasses import replace

import pytest
import torch
from corpus_folder import CorpusFolder, make_pair
from tiny_clip import tiny_model

from autoseg.errors import UserError
from vlm.training.settings import DataChoice
from vlm.training.shards import read_index
from vlm.training.streaming import BatchPlan, open_batches


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streaming")
    pairs = [make_pair(source, row, captions=tuple(f"{source} scan {row} {word}" for word in ("left", "right")))
             for source, count in (("large", 21), ("small", 6)) for row in range(count)]
    corpus = CorpusFolder(folder / "corpus", pairs, 5).write()
    tokenizer = tiny_model(folder / "text").tokenizer
    return BatchPlan(
        parts=read_index(corpus).of("train"), choice=DataChoice(alpha=0.5), tokenizer=tokenizer, image_size=32,
        interpolation="bicubic", batch_size=8, steps_per_epoch=3, seed=1, rank=0, world=1, text_call_tokens=16,
        texts_at_once=8)


def batches(plan, first, last, threads=2):
    with open_batches(plan, first, threads) as stream:
        return [stream.next_batch() for _ in range(first, last)]


def same(one, other):
    texts = zip(one.texts.groups, other.texts.groups, strict=True)
    return (one.uids == other.uids and torch.equal(one.images, other.images)
            and torch.equal(one.texts.place, other.texts.place) and all(torch.equal(a, b) for a, b in texts))


def test_going_on_in_mid_epoch_gives_the_batches_of_going_through(plan):
    through = batches(plan, 0, 8)
    for first in (1, 4, 7):
        assert all(same(*both) for both in zip(through[first:], batches(plan, first, 8, threads=1), strict=True))
    assert len({batch.uids for batch in through}) == 8


def test_processes_share_each_batch_between_them(plan):
    whole = batches(plan, 0, 4)
    parts = [batches(replace(plan, rank=rank, world=2), 0, 4) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert first.uids == batch.uids[0::2] and second.uids == batch.uids[1::2]
        assert torch.equal(first.images, batch.images[0::2]) and torch.equal(second.images, batch.images[1::2])
        assert torch.equal(second.text_keys, batch.text_keys[1::2])


def test_a_pair_that_comes_again_is_seen_differently(plan):
    seen = {}
    for batch in batches(plan, 0, 9):
        for uid, image in zip(batch.uids, batch.images, strict=True):
            seen.setdefault(uid, []).append(image)
    often = max(seen.values(), key=len)
    assert len(often) > 2 and not all(torch.equal(often[0], other) for other in often[1:])


def test_a_damaged_image_is_told_with_its_shard_and_uid(plan, tmp_path):
    record, _, form = make_pair("chest", 3)
    corpus = CorpusFolder(tmp_path / "corpus", [(record, b"no image", form)] * 8).write()
    broken = replace(plan, parts=read_index(corpus).of("train"), steps_per_epoch=1)
    with pytest.raises(UserError, match=r"chest-train-00000\d\.tar is damaged: the image of chest_00000003 cannot be"):
        batches(broken, 0, 1)
