"""Which text bank a training uses: one of a folder, or one that comes with autoseg; and its vectors for a dataset."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from autoseg.errors import UserError, all_of
from autoseg.guidance.label_names import match_key
from autoseg.guidance.lexicon import Lexicon, load_lexicon
from autoseg.guidance.modalities import modality_of_channels
from autoseg.guidance.prompts import contexts_of, sentences
from autoseg.guidance.records import CONTROLS
from autoseg.guidance.text_bank import RECORD_NAME, TextBank, read_bank

DEFAULT_BANK = "lexicon-clip"
OWN_SENTENCES = ("Rename the labels in dataset.json to what they show, or give them sentences of your own: "
                 "`autoseg prompts` writes the file for it and says how it becomes a bank.")


def shipped_banks() -> list[str]:
    """Names of the banks that come with autoseg; each holds the whole lexicon."""
    return sorted(entry.name for entry in _shipped().iterdir() if (entry / RECORD_NAME).is_file())


def open_bank(choice: str | Path | None) -> TextBank:
    """The bank in a folder, or one of autoseg's own by name; `DEFAULT_BANK` for None.

    A name of autoseg's own goes before a folder that is called so; "./NAME" is the folder.

    Raises
    ------
    UserError : there is no such bank, or it is damaged (see `read_bank`).
    """
    name = DEFAULT_BANK if choice is None else str(choice)
    if name in shipped_banks():
        return read_bank(_shipped() / name)
    if not Path(name).is_dir():
        near = get_close_matches(name, shipped_banks(), n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"--text-bank {name}: there is no such folder, and no bank of that name comes with "
                        f"autoseg.{meant}\nGive a folder that `vlm encode-labels` wrote, or one of: "
                        f"{', '.join(shipped_banks())}.")
    return read_bank(Path(name))


def label_vectors(
    bank: TextBank, labels: Sequence[str], dataset: str, channel_names: Sequence[str]
) -> tuple[Float32[np.ndarray, "label dimension"], tuple[str, ...]]:
    """(a unit vector per foreground label, the bank's name for each).

    The dataset's name, its channels and its other labels tell which "tumor" is meant. A paired structure without its
    side ("kidney") in a bank that has only the two sides is their mean direction; its name is then the lexicon's.

    Raises
    ------
    UserError : lists every label that the bank lacks, with the nearest names, and labels that would share a vector.
    """
    lexicon = load_lexicon()
    found = names_in(bank, labels, dataset, channel_names)
    problems = [f"{label!r}{_nearest(label, bank, lexicon)}" for label in labels if label not in found]
    if problems:
        raise all_of(problems, f"{len(problems)} of {len(labels)} labels are not in the text bank "
                     f"({len(bank.names)} names, tower {bank.record.tower.name}):", OWN_SENTENCES)
    first: dict[str, str] = {}
    for label, name in found.items():
        if (other := first.setdefault(name, label)) != label:
            problems.append(f"{label!r} and {other!r} are both {name!r} and would share one vector")
    if problems:
        raise all_of(problems, "Labels that words cannot tell apart:", OWN_SENTENCES)
    names = tuple(found[label] for label in labels)
    return bank.vectors_of(names, lexicon), names


def names_in(
    bank: TextBank, labels: Sequence[str], dataset: str, channel_names: Sequence[str]
) -> dict[str, str]:
    """Label → the bank's name for it, where there is one.

    What the lexicon understands goes before the label as it stands: in a bank of the whole lexicon, "tumor" beside
    "liver" is the liver tumor. Not so where what is understood is a label too, this one or another.
    """
    lexicon, contexts = load_lexicon(), contexts_of(labels, modality_of_channels(channel_names), dataset)
    names = {match_key(name): name for name in reversed(bank.names)}
    own = {match_key(label) for label in labels}
    found: dict[str, str] = {}
    for label in labels:
        plain = label if label in bank.names else names.get(match_key(label))
        understood = _understood(label, names, lexicon, contexts)
        taken = understood is not None and match_key(understood) in own
        if name := (plain or understood) if taken else (understood or plain):
            found[label] = name
    return found


def of_other_sentences(bank: TextBank, matched: Mapping[str, str], prompts: Mapping[str, Sequence[str]]) -> list[str]:
    """Labels whose sentences in `prompts` are not those that the bank's vectors were made from.

    matched : label → the bank's name, of `names_in`. A label that is the mean of both sides is compared with the
        lexicon's sentences for it. A bank of vectors by chance has no sentences, and none differ.
    """
    if bank.record.tower.kind in CONTROLS:
        return []
    entries = load_lexicon().entries
    made_from = {label: bank.record.prompts[name] if name in bank.record.prompts else sentences(entries[name])
                 for label, name in matched.items()}
    return [label for label, texts in made_from.items() if tuple(prompts[label]) != texts]


def _shipped() -> Path:
    """presets/text_banks. Packages are installed as files: vectors are read from where they lie, without a copy."""
    return Path(str(resources.files("presets") / "text_banks"))


def _understood(
    label: str, names: Mapping[tuple[str, ...], str], lexicon: Lexicon, contexts: tuple[Sequence[str], ...]
) -> str | None:
    try:
        entry = lexicon.find(label, *contexts)
    except UserError:
        return None
    if entry.halves is not None and all(match_key(half) in names for half in entry.halves):
        return names.get(match_key(entry.canonical), entry.canonical)
    return names.get(match_key(entry.canonical))


def _nearest(label: str, bank: TextBank, lexicon: Lexicon) -> str:
    held = {match_key(name) for name in bank.names}
    near = [name for name in lexicon.nearest(label) if match_key(name) in held]
    near = near or get_close_matches(label, bank.names, n=3, cutoff=0.5)
    return f" (nearest: {', '.join(near)})" if near else ""
