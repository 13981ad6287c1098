"""What a language model is asked for, and how its answer is read.

The texts below are part of the cache's key: a changed word makes new captions.
"""

import json
from collections.abc import Sequence
from typing import Literal, TypedDict

from pydantic import ValidationError

from autoseg.records import ForeignRecord
from vlm.corpus.captions.tables import LabelTable, describe, words_of
from vlm.corpus.rows import LabelSet


class ChatMessage(TypedDict):
    """One turn of a conversation, as chat endpoints and chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


Messages = tuple[ChatMessage, ...]


class CaptionAnswer(ForeignRecord):
    """The structure of an answer."""

    captions: tuple[str, ...]


ANSWER_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"captions": {"type": "array", "items": {"type": "string"}}},
    "required": ["captions"],
    "additionalProperties": False,
}
"""JSON schema of `CaptionAnswer`, of the keywords that every server with structured output knows (no lengths)."""

SYSTEM = (
    "You write captions of medical images, from which a model learns to match images and sentences. You are given "
    "facts about an image that you do not see. Write as a specialist would in a figure legend or a report: plain, "
    "precise, in English. Say what the facts say and nothing else: no size, side, number, severity, age, sex, history, "
    "cause or treatment that is not given, no advice, no patient's name, no mention of a label or data set.")

LONGEST_SHOWN = 2000
"""Characters of a wrong answer that are shown to the model again: enough to see its fault, little of the context."""
OBJECTS_TRIED = 50
"""Opening braces of an answer at which a JSON object is looked for; an answer needs one, with drafts a few."""


class NoCaptions(Exception):
    """An answer that holds no captions. answer : its text, "" where there is none."""

    def __init__(self, reason: str, answer: str) -> None:
        super().__init__(reason)
        self.answer = answer


def opening(labels: LabelSet, table: LabelTable | None, count: int) -> Messages:
    """The first question about a label set."""
    facts = "\n".join(f"- {fact}" for fact in facts_of(labels, table))
    wishes = "\n".join(f"- {wish}" for wish in _wishes(labels))
    return ({"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Facts about the image:\n{facts}\n\nWrite {count} captions of this image.\n"
                                        f"{wishes}\n\n{_form(count)}"})


def again(first: Messages, answer: str, problem: str, kept: Sequence[str], count: int) -> Messages:
    """The question that follows an answer which was wrong or too short; only the last answer is shown."""
    good = "\n".join(f"- {text}" for text in kept)
    good = f"These captions are good; write others that differ from them:\n{good}\n\n" if kept else ""
    missing = count - len(kept)
    return (*first,
            {"role": "assistant", "content": answer[:LONGEST_SHOWN] or "(no answer)"},
            {"role": "user", "content": f"That cannot be used as it is. What is wrong: {problem}.\n\n{good}"
                                        f"Write {missing} more under the same rules. {_form(missing)}"})


def with_schema(messages: Messages) -> Messages:
    """For a model that is not held to the answer's structure by other means: its JSON schema, in the prompt."""
    last = messages[-1]
    schema = json.dumps(ANSWER_SCHEMA, sort_keys=True)
    return (*messages[:-1], {"role": last["role"],
                             "content": f"{last['content']}\nThe JSON schema of the answer is {schema}"})


def prompt_text(messages: Messages) -> str:
    """A conversation as one text: for a cache key, and for a model without a chat template."""
    return "\n\n".join(message["content"] for message in messages)


def parse_captions(text: str) -> tuple[str, ...]:
    """The captions of the last object in the text that has the answer's structure.

    Models put thoughts or a code fence around it. NoCaptions where there is none, or one without captions.
    """
    decoder = json.JSONDecoder()
    found: tuple[str, ...] | None = None
    position = text.find("{")
    for _ in range(OBJECTS_TRIED):
        if position < 0:
            break
        try:
            content, end = decoder.raw_decode(text, position)
            found = CaptionAnswer.model_validate(content).captions
        except ValidationError:
            pass  # an object of another structure, which may hold the answer: looked into next
        except (json.JSONDecodeError, RecursionError):
            pass
        else:
            position = end - 1
        position = text.find("{", position + 1)
    if not found:
        raise NoCaptions('no JSON object {"captions": ["…", …]} in the answer' if found is None
                         else "the list of captions is empty", text)
    return found


def facts_of(labels: LabelSet, table: LabelTable | None) -> tuple[str, ...]:
    """What is known about an image, a line each."""
    lists = {
        "Findings that are present": labels.present,
        "Findings that are uncertain": labels.uncertain,
        "Findings that are absent": labels.absent,
    }
    findings = [f"{name}: {'; '.join(describe(label, table, labels.modality) for label in values)}"
                for name, values in lists.items() if values]
    anatomy = _anatomy(labels, table)
    return (f"Modality: {labels.modality}" if labels.modality != "mixed" else "Modality: not known",
            *([f"Anatomy: {anatomy}"] if anatomy else []),
            *([f"View: {labels.view}"] if labels.view else []),
            *(findings or ["Findings: nothing is known"]))


def _anatomy(labels: LabelSet, table: LabelTable | None) -> str | None:
    """As the source says it; otherwise that of the first label with one, or of the whole table."""
    found = [words_of(label, table, labels.modality).anatomy for label in labels.present]
    of_table = None if table is None else table.anatomy
    return next((anatomy for anatomy in (labels.anatomy, *found, of_table) if anatomy), None)


def _wishes(labels: LabelSet) -> tuple[str, ...]:
    modality = "the modality" if labels.modality != "mixed" else "that it is a medical image"
    return (
        "Each is one sentence, or two short ones, of 5 to 40 words.",
        f"Each names {modality}, by its usual name or abbreviation.",
        *(["Each names every present finding, in the words above or in usual synonyms."] if labels.present else []),
        *(["Each that names an uncertain finding says that it is possible, suspected or cannot be excluded; no caption "
           "states it as a fact."] if labels.uncertain else []),
        *(["Absent findings are only ever said to be absent; name all, some or the most telling of them."]
          if labels.absent else []),
        "They differ in words, in the order of what is said and in length; none repeats another.",
    )


def _form(count: int) -> str:
    return ('Answer with one JSON object and nothing else: {"captions": ["…", "…"]}, '
            f"with {count} {'string' if count == 1 else 'strings'} in the list.")
