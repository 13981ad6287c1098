"""Which caption of a pair is read: a function of the policy and (seed, visit, uid) alone."""

import hashlib

from vlm.training.pairs import TrainingPair
from vlm.training.settings import CaptionChoice


def choose_caption(pair: TrainingPair, choice: CaptionChoice, seed: int, visit: int) -> str:
    """The text that is read when a pair is visited for the `visit`-th time (from 0; see `sampling.EpochOrder`)."""
    policy = choice.sources.get(pair.source, choice.policy)
    if policy == "first":
        return pair.captions[0].text
    bits = caption_bits(seed, visit, pair.uid)
    if policy == "uniform":
        return pair.captions[bits % len(pair.captions)].text
    coin, pick = (bits >> 64) / 2**64, bits % 2**64
    wants_report = coin < (choice.report_p or 0.0)
    wanted = [caption for caption in pair.captions if (caption.kind == "report") == wants_report]
    chosen = wanted or pair.captions
    return chosen[pick % len(chosen)].text


def caption_bits(seed: int, visit: int, uid: str) -> int:
    """128 random bits for a pair's visit, whatever the order in which pairs are read."""
    digest = hashlib.blake2b(f"{seed} {visit} {uid}".encode(), digest_size=16, person=b"vlm caption").digest()
    return int.from_bytes(digest, "little")
