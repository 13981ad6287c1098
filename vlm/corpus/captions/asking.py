"""Captions from a language model: ask, check every sentence, ask again for those that are missing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from autoseg.errors import UserError
from autoseg.records import Record
from vlm.corpus.captions.checks import check_caption, drop_near_duplicates
from vlm.corpus.captions.posting import shortened
from vlm.corpus.captions.prompting import Messages, NoCaptions, again, opening, parse_captions, prompt_text, with_schema
from vlm.corpus.captions.tables import LabelTable
from vlm.corpus.rows import LabelSet
from vlm.schema import Caption

NEAR_DUPLICATE = "says the same as another one"
CHECKED_PER_MISSING = 4
"""A model that runs on gives hundreds of sentences; of these, so many per missing caption are looked at."""


class RejectedText(Record):
    """A sentence of a model that is not used, and why; kept in the cache for a person to look at."""

    text: str
    reason: str


@dataclass(frozen=True)
class Reply:
    """What a model said. origin : of captions made from it."""

    text: str
    origin: str


@dataclass(frozen=True)
class Written:
    """The captions of one label set, as many as were asked for, and the sentences that failed the checks."""

    captions: tuple[Caption, ...]
    rejected: tuple[RejectedText, ...] = ()


class AskingWriter(ABC):
    """A caption writer that asks a language model.

    name : what makes the text: equal names promise the same model. asks : of the model per label set, at most. Each
    ask after the first shows the model what was wrong with its last answer and asks for the missing captions only, so
    a model that always answers the same (greedy decoding) gets another question.
    """

    def __init__(self, name: str, asks: int) -> None:
        if asks < 1:
            raise UserError(f"asks is {asks}; a model must be asked at least once per label set.")
        self.name = name
        self._asks = asks

    @abstractmethod
    def chat(self, messages: Messages) -> Reply:
        """The model's answer to a conversation. NoCaptions where what came back holds no text of a model."""

    def prompt(self, labels: LabelSet, table: LabelTable | None, count: int) -> str:
        """All that the model is told at first, with the schema; captions depend on it, the model and chance."""
        return prompt_text(with_schema(opening(labels, table, count)))

    def write(self, labels: LabelSet, table: LabelTable | None, count: int) -> tuple[Caption, ...]:
        """`count` checked captions; UserError where the model does not give them."""
        return self.compose(labels, table, count).captions

    def compose(self, labels: LabelSet, table: LabelTable | None, count: int) -> Written:
        """As `write`, with what was rejected on the way."""
        captions: tuple[Caption, ...] = ()
        rejected: list[RejectedText] = []
        first = messages = opening(labels, table, count)
        problem = answer = ""
        for _ in range(self._asks):
            try:
                reply = self.chat(messages)
                answer = reply.text
                texts = parse_captions(reply.text)
            except NoCaptions as error:
                problem, answer = str(error), error.answer
            else:
                limit = CHECKED_PER_MISSING * (count - len(captions))
                captions, refused = _sifted(captions, texts[:limit], reply.origin, labels, table)
                rejected += refused
                problem = "; ".join(f"{text.reason}: {shortened(text.text)!r}" for text in refused[:3])
            if len(captions) >= count:
                return Written(captions[:count], tuple(rejected))
            problem = problem or "too few captions"
            messages = again(first, answer, problem, tuple(caption.text for caption in captions), count)
        raise UserError(
            f"{self.name} gave {len(captions)} of {count} usable captions for {_in_words(labels)} when asked "
            f"{self._asks} times.\nWrong with the last answer: {shortened(problem, 400)}.\n"
            f"The last answer was: {shortened(answer) or '(nothing)'}\n"
            "Try a larger model, or write captions with the grammar (--captions grammar).")


def _sifted(
    captions: tuple[Caption, ...], texts: Sequence[str], origin: str, labels: LabelSet, table: LabelTable | None
) -> tuple[tuple[Caption, ...], list[RejectedText]]:
    """(captions with those of the new texts that pass, the others with the reason)."""
    rejected: list[RejectedText] = []
    passed: list[str] = []
    for text in texts:
        sentence = " ".join(text.split())
        reason: str | None = "is empty" if not sentence else "has control characters"
        if sentence and sentence.isprintable():
            reason = check_caption(sentence, labels, table)
        if reason is None:
            passed.append(sentence)
        else:
            rejected.append(RejectedText(text=shortened(sentence, 500), reason=reason))
    known = {caption.text: caption for caption in captions}
    kept = drop_near_duplicates((*known, *passed))
    rejected += [RejectedText(text=text, reason=NEAR_DUPLICATE)
                 for text in dict.fromkeys(passed) if text not in kept]
    return tuple(known.get(text) or Caption(text=text, kind="generated", origin=origin) for text in kept), rejected


def _in_words(labels: LabelSet) -> str:
    parts = {"present": labels.present, "uncertain": labels.uncertain, "absent": labels.absent}
    return " · ".join([labels.modality, *(f"{name}: {', '.join(values)}" for name, values in parts.items() if values)])
