"""Groups of captions: the least padding, each caption in its place, and the same embeddings as in one batch."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_clip import tiny_model

from vlm.training.texts import group_bounds, group_texts

CAPTIONS = ["ct scan", "a normal chest", "the image shows a tumor of the left kidney and no other tumor", "ct scan",
            "liver", "the image shows a liver with a tumor", "ct scan", "a normal chest"]


@given(st.lists(st.sampled_from([8, 16, 24, 64]), min_size=1, max_size=8), st.integers(0, 60))
def test_groups_cost_the_least_of_all_divisions(lengths, call):
    widths = sorted(lengths, reverse=True)

    def cost(cuts):
        ends = [*cuts, len(widths)]
        return sum((end - begin) * widths[begin] + call for begin, end in zip([0, *cuts], ends, strict=True))

    found = group_bounds(widths, call, most=100)
    assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])] and found[-1][1] == len(widths)
    least = min(cost(cuts) for count in range(len(widths)) for cuts in combinations(range(1, len(widths)), count))
    assert cost([begin for begin, _ in found[1:]]) == least


def test_no_group_is_larger_than_allowed():
    assert group_bounds([8] * 7, 100, most=3) == [(0, 3), (3, 6), (6, 7)]


@pytest.mark.parametrize("to_context", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_embeddings_are_those_of_one_padded_batch(tmp_path, share, to_context):
    model = tiny_model(tmp_path)
    network = model.network.eval()
    found = group_texts(CAPTIONS, model.tokenizer, share=share, to_context=to_context, call_tokens=4, most=3)
    assert sum(map(len, found.groups)) == (5 if share else 8)
    assert all(ids.shape[1] == 32 for ids in found.groups) or not to_context
    with torch.inference_mode():
        rows = torch.cat([network.encode_text(ids) for ids in found.groups])[found.place]
        expected = network.encode_text(model.tokenizer.encode(CAPTIONS, "full").ids)
    assert torch.allclose(rows, expected, atol=1e-5)


def test_captions_longer_than_the_context_are_counted(tmp_path):
    tokenizer = tiny_model(tmp_path, context_length=8).tokenizer
    found = group_texts(CAPTIONS, tokenizer, share=False, to_context=False, call_tokens=4, most=8)
    assert found.truncated == 2
