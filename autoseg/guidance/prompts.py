"""Lexicon entries → sentences: where a structure lies and on which side first, then its shape and neighbors."""

from collections.abc import Sequence

from autoseg.errors import UserError, all_of
from autoseg.guidance.label_names import is_background
from autoseg.guidance.lexicon import Lexicon
from autoseg.guidance.modalities import IMAGES, MODALITIES, as_modality
from autoseg.guidance.records import Entry, Modality

NEIGHBORS_NAMED = 3
USUAL: Sequence[Modality] = ("CT", "MR")
"""Devices of a structure whose entry (a user's own) does not say on which it is seen."""

CONTEXT: dict[Modality | None, tuple[str, ...]] = {"fundus": ("retinal", "optic"), "OCT": ("retinal", "optic")}
"""Words that a kind of device adds to the context of a label: a "hemorrhage" in a fundus photograph is retinal."""


def sentences(entry: Entry, modality: str | None = None) -> tuple[str, ...]:
    """Five or more different sentences about a structure; equal arguments give equal sentences.

    Each names the structure with its side; place and side stand before shape and looks.

    modality : kind of device ("CT", "MRI", …). With it, the sentences also say how the structure looks there; without
        it, they name every device that shows the structure, so that they are not tied to the one of some images.

    Raises
    ------
    UserError : no such modality.
    """
    name, place = f"the {entry.canonical}", entry.location
    called = f", also called {entry.synonyms[0]}" if entry.synonyms else ""
    near = _joined([f"the {neighbor}" for neighbor in entry.neighbors[:NEIGHBORS_NAMED]])
    told = [
        entry.canonical,
        f"{place}: {name}{called}",
        f"{place}: {entry.shape}, {name}",
        f"in the {entry.region}: {name}{f', next to {near}' if near else ''}",
        *_images(entry, None if modality is None else as_modality(modality)),
    ]
    return tuple(f"{text[0].upper()}{text[1:]}." for text in told)


def sentences_of_lexicon(lexicon: Lexicon, modality: str | None = None) -> dict[str, tuple[str, ...]]:
    """Canonical name → sentences, for a bank of the whole lexicon.

    Paired structures stand in it left and right only: a bank gives "kidney" as the mean direction of both
    (`TextBank.vectors_of`), and is smaller by a fifth.
    """
    return {name: sentences(entry, modality) for name, entry in lexicon.entries.items() if entry.halves is None}


def sentences_of_labels(
    labels: Sequence[str], lexicon: Lexicon, modality: str | None = None, dataset: str | None = None,
    images: str | None = None,
) -> dict[str, tuple[str, ...]]:
    """Label → sentences, in the order of the labels, without the background.

    modality : what the sentences name, as of `sentences`. dataset : its name; with the other labels it tells what a
        label such as "tumor" means. images : the kind of device of the dataset's images, which only helps to
        understand labels; by default `modality`.

    Raises
    ------
    UserError : lists every label that is unknown (with the nearest entries), says nothing, or means what another
        label means.
    """
    found = entries_of_labels(labels, lexicon, images or modality, dataset)
    return {label: sentences(entry, modality) for label, entry in found.items()}


def entries_of_labels(
    labels: Sequence[str], lexicon: Lexicon, modality: str | None = None, dataset: str | None = None
) -> dict[str, Entry]:
    """Label → entry, in the order of the labels, without the background; raises what `sentences_of_labels` raises."""
    found, problems = match_labels(labels, lexicon, modality, dataset)
    texts = list(problems.values())
    if len(texts) == 1:
        raise UserError(texts[0])
    if texts:
        raise all_of([text.replace("\n", "\n    ") for text in texts],
                     f"{len(texts)} of {len(found) + len(texts)} labels have no words of their own:",
                     "Mend these labels, then try again.")
    return found


def match_labels(
    labels: Sequence[str], lexicon: Lexicon, modality: str | None = None, dataset: str | None = None
) -> tuple[dict[str, Entry], dict[str, str]]:
    """(label → entry, label → why it has none): every label but the background stands in one of the two."""
    contexts = contexts_of(labels, modality, dataset)
    found: dict[str, Entry] = {}
    problems: dict[str, str] = {}
    for label in (label for label in labels if not is_background(label)):
        try:
            entry = lexicon.find(label, *contexts)
        except UserError as error:
            problems[label] = str(error)
            continue
        if twins := [other for other, known in found.items() if known.canonical == entry.canonical]:
            problems[label] = (f"{label!r} and {twins[0]!r} are both {entry.canonical!r}: they would share one "
                               "vector.\nGive one of them an entry of its own in a lexicon file.")
            continue
        found[label] = entry
    return found, problems


def contexts_of(
    labels: Sequence[str], modality: str | None = None, dataset: str | None = None
) -> tuple[Sequence[str], ...]:
    """What tells which "tumor" is meant, for `Lexicon.find`: the kind of device, the dataset's name, the labels."""
    kind = None if modality is None else as_modality(modality)
    return CONTEXT.get(kind, ()), (dataset,) if dataset else (), labels


def _images(entry: Entry, modality: Modality | None) -> list[str]:
    """What images show: of one modality where the structure lies in them and how it looks, else of every device."""
    name, place = f"the {entry.canonical}", entry.location
    if modality is None:
        seen = [one for one in MODALITIES if one in entry.appearance] or USUAL
        return [f"{IMAGES[one]} that shows {name} in the {entry.region}" for one in seen]
    looks = f", {entry.appearance[modality]}" if modality in entry.appearance else ""
    image = IMAGES[modality]
    return [f"{image} that shows {name} in the {entry.region}", f"{place}, on {image}: {name}{looks}"]


def _joined(texts: Sequence[str]) -> str:
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else "".join(texts)
