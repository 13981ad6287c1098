"""The captions of a batch → groups of token numbers of similar length, so that little padding is computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from vlm.model.tokenizer import Tokenizer

PADDED_TO = 8


@dataclass(frozen=True)
class TextGroups:
    """groups : token numbers of the texts to encode, the longest first. place : per pair, the row of its text in all
    groups together. truncated : texts that were longer than the context and lost their end.
    """

    groups: tuple[Int64[Tensor, "_ _"], ...]
    place: Int64[Tensor, " pair"]
    truncated: int


def group_texts(
    texts: Sequence[str], tokenizer: Tokenizer, *, share: bool, to_context: bool, call_tokens: int, most: int
) -> TextGroups:
    """Encode the captions of pairs for the text tower.

    Parameters
    ----------
    share : encode a caption that several pairs have once.
    to_context : pad every text to the whole context; else each group to its longest text.
    call_tokens : what a group costs beside its tokens, as so many tokens. most : texts of a group.
    """
    numbers: dict[str | int, int] = {}
    keys = [text if share else place for place, text in enumerate(texts)]
    which = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
    distinct = list(dict.fromkeys(texts)) if share else list(texts)
    encoded = tokenizer.encode(distinct, "full" if to_context else "longest", PADDED_TO)
    order = torch.argsort(encoded.lengths, descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    full = encoded.ids.shape[1]
    widths = [full if to_context else min(full, -(-length // PADDED_TO) * PADDED_TO)
              for length in encoded.lengths[order].tolist()]
    groups = [encoded.ids[order[begin:end], : widths[begin]] for begin, end in group_bounds(widths, call_tokens, most)]
    return TextGroups(tuple(groups), place[which], encoded.truncated)


def group_bounds(widths: Sequence[int], call_tokens: int, most: int) -> list[tuple[int, int]]:
    """(begin, end) of groups of texts of falling widths, such that the text tower's work is least.

    A group costs its texts times the width of its first, plus `call_tokens`; the best of all divisions is found
    (dynamic programming over the places where the width falls). Groups of more than `most` texts are then divided.
    """
    places = [0, *(place for place in range(1, len(widths)) if widths[place] < widths[place - 1]), len(widths)]
    cost, cut = [0], [0]
    for end in range(1, len(places)):
        ways = [cost[begin] + (places[end] - places[begin]) * widths[places[begin]] + call_tokens
                for begin in range(end)]
        cut.append(min(range(end), key=ways.__getitem__))
        cost.append(ways[cut[-1]])
    bounds, end = list[tuple[int, int]](), len(places) - 1
    while end:
        bounds.append((places[cut[end]], places[end]))
        end = cut[end]
    return [(start, min(start + most, stop)) for begin, stop in reversed(bounds) for start in range(begin, stop, most)]
