"""Batches of a training, by their number: read, decoded and encoded by threads, a few batches ahead."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from autoseg.errors import UserError
from vlm.corpus.image_files import BadImage
from vlm.model.records import Interpolation
from vlm.model.tokenizer import Tokenizer
from vlm.training.captions import choose_caption
from vlm.training.images import training_image
from vlm.training.pairs import label_key, text_key
from vlm.training.sampling import EpochOrder, epoch_order, quotas, source_probabilities
from vlm.training.settings import DataChoice
from vlm.training.shards import Part
from vlm.training.texts import TextGroups, group_texts

SAMPLES_PER_TASK = 8
BATCHES_AHEAD = 2
_CROP = 2  # stream of the seed; the order of pairs has 0 and 1


@dataclass(frozen=True)
class Sample:
    """A pair that is ready for the towers; the keys say which pairs belong together."""

    uid: str
    image: UInt8[np.ndarray, "3 y x"]
    text: str
    label_key: int
    text_key: int


@dataclass(frozen=True)
class Batch:
    """The pairs of one process and step. images : levels 0 to 255."""

    images: UInt8[Tensor, "pair 3 y x"]
    texts: TextGroups
    label_keys: Int64[Tensor, " pair"]
    text_keys: Int64[Tensor, " pair"]
    uids: tuple[str, ...]

    @property
    def pairs(self) -> int:
        """Their number."""
        return len(self.uids)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What a training's batches are a function of.

    parts : sources to draw from. batch_size : pairs of a step over all processes; process `rank` of `world` has every
    `world`-th of them. steps_per_epoch : whole batches. text_call_tokens, texts_at_once : see `group_texts`.
    """

    parts: tuple[Part, ...]
    choice: DataChoice
    tokenizer: Tokenizer
    image_size: int
    interpolation: Interpolation
    batch_size: int
    steps_per_epoch: int
    seed: int
    rank: int
    world: int
    text_call_tokens: int
    texts_at_once: int

    def order(self, epoch: int) -> EpochOrder:
        """The epoch's pairs, in order."""
        sizes = {part.source: len(part) for part in self.parts}
        shares = source_probabilities(sizes, self.choice.alpha, self.choice.weights)
        counts = quotas(shares, self.steps_per_epoch * self.batch_size)
        return epoch_order(list(sizes.values()), counts, self.seed, epoch, self.choice.shuffle_window)

    def sample(self, source: int, pair: int, visit: int, place: int) -> Sample:
        """One pair as it is seen in a visit; `place` counts all draws of the training, for the crop.

        UserError naming its shard where that is damaged.
        """
        part = self.parts[source]
        read = part.read(pair)
        caption = choose_caption(read, self.choice.captions, self.seed, visit)
        rng = np.random.default_rng([self.seed, _CROP, place])
        try:
            image = training_image(read.image, self.image_size, self.choice.augmentation, self.interpolation, rng)
        except BadImage as error:
            shard = part.shards[int(part.rows[pair, 0])]
            raise UserError(f"{shard} is damaged: the image of {read.uid} {error}.\n"
                            "Copy the shard again from where it was built, or build the corpus again.") from None
        return Sample(read.uid, image, caption, label_key(read), text_key(caption))

    def assemble(self, samples: Sequence[Sample]) -> Batch:
        """A batch of samples."""
        texts = group_texts([sample.text for sample in samples], self.tokenizer, share=self.choice.share_captions,
                            to_context=self.choice.padding == "full", call_tokens=self.text_call_tokens,
                            most=self.texts_at_once)
        return Batch(
            torch.from_numpy(np.stack([sample.image for sample in samples])), texts,
            torch.tensor([sample.label_key for sample in samples]),
            torch.tensor([sample.text_key for sample in samples]), tuple(sample.uid for sample in samples))


class BatchStream:
    """Batches from a first step on, in order; `next_batch` waits for the next one.

    readers : make samples. assembler : one thread, which waits for them and encodes their texts.
    """

    def __init__(
        self, plan: BatchPlan, first_step: int, readers: ThreadPoolExecutor, assembler: ThreadPoolExecutor, ahead: int
    ) -> None:
        self._plan, self._readers, self._assembler, self._ahead = plan, readers, assembler, ahead
        self._step = first_step
        self._orders: Callable[[int], EpochOrder] = lru_cache(2)(plan.order)
        self._waiting: deque[Future[Batch]] = deque()

    def next_batch(self) -> Batch:
        """The batch of the next step. UserError where a pair of it cannot be read."""
        while len(self._waiting) <= self._ahead:
            self._waiting.append(self._assembler.submit(self._assemble, self._submit(self._step)))
            self._step += 1
        return self._waiting.popleft().result()

    def _assemble(self, tasks: Sequence[Future[list[Sample]]]) -> Batch:
        return self._plan.assemble([sample for task in tasks for sample in task.result()])

    def _submit(self, step: int) -> list[Future[list[Sample]]]:
        plan = self._plan
        epoch, in_epoch = divmod(step, plan.steps_per_epoch)
        order = self._orders(epoch)
        begin = in_epoch * plan.batch_size
        places = range(begin + plan.rank, begin + plan.batch_size, plan.world)
        offset = epoch * plan.steps_per_epoch * plan.batch_size
        draws = [(int(order.source[place]), int(order.pair[place]), int(order.visit[place]), offset + place)
                 for place in places]
        return [self._readers.submit(_read, plan, draws[start : start + SAMPLES_PER_TASK])
                for start in range(0, len(draws), SAMPLES_PER_TASK)]


@contextmanager
def open_batches(plan: BatchPlan, first_step: int, threads: int, ahead: int = BATCHES_AHEAD) -> Iterator[BatchStream]:
    """Batches from `first_step` on, read by `threads` threads which end with the block.

    Threads do: decoding and resizing leave Python's lock, and a batch need not travel between processes.
    """
    readers, assembler = ThreadPoolExecutor(threads, "vlm-read"), ThreadPoolExecutor(1, "vlm-assemble")
    try:
        yield BatchStream(plan, first_step, readers, assembler, ahead)
    finally:
        # The readers first: what the assembler waits for is then done or cancelled.
        readers.shutdown(wait=True, cancel_futures=True)
        assembler.shutdown(wait=True, cancel_futures=True)


def _read(plan: BatchPlan, draws: Sequence[tuple[int, int, int, int]]) -> list[Sample]:
    return [plan.sample(*draw) for draw in draws]
