"""The anatomy lexicon: structures by name, found through synonyms, abbreviations and the spellings of datasets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from autoseg.errors import UserError, all_of
from autoseg.guidance.label_names import (
    EMPTY_WORDS,
    SIDES,
    compact,
    content_words,
    is_background,
    is_opaque,
    match_key,
    normalize,
)
from autoseg.guidance.reading import HOW_TO_ADD, Written, entries_of, extra_structures, shipped_structures
from autoseg.guidance.records import Entry

Key = tuple[str, ...]

GENERIC = frozenset({
    "aneurysm", "anterior", "artery", "blood", "cancer", "carcinoma", "cavity", "cyst", "disc", "edema", "gland",
    "head", "hemorrhage", "infection", "lesion", "mass", "metastasis", "necrosis", "nodule", "polyp", "posterior",
    "scar", "stone", "tail", "tumor", "vein", "vessel", "wall",
})
"""Words that say what kind of thing a label is, but not where: of a label with no other words, the dataset's name and
its other labels tell which one is meant ("tumor" beside "liver" is a liver tumor)."""


@dataclass(frozen=True)
class Lexicon:
    """Entries by canonical name, and two indices of all their names: by words, and by letters without spaces."""

    entries: Mapping[str, Entry]
    by_key: Mapping[Key, str]
    by_letters: Mapping[str, str]

    def find(self, name: str, *contexts: Sequence[str]) -> Entry:
        """The entry that a label name means.

        contexts : other labels, the dataset's name, … They decide what a name of `GENERIC` words means: the first
            context with whose words it names one entry, not several.

        Raises
        ------
        UserError : the name is the background's, says nothing ("label_1"), or no entry has it; with the nearest
            names and how to add an entry.
        """
        if is_background(name):
            raise UserError(f"{name!r} is no structure: background and ignored voxels need no words. Leave it out.")
        found = next(filter(None, (self._in_context(name, context) for context in contexts)), None)
        found = found or self._plainly(name)
        if found is None and is_opaque(name):
            raise UserError(f"the label name {name!r} does not say what it stands for.\n"
                            "Rename the label in dataset.json to the structure's name, or give sentences for it.")
        if found is None:
            raise self._unknown(name)
        return self.entries[found]

    def nearest(self, name: str, count: int = 3) -> tuple[str, ...]:
        """Canonical names that hold all words of a name, are spelled like it, or share a word; the best first."""
        names = {normalize(text): entry.canonical for entry in reversed(list(self.entries.values()))
                 for text in entry.names}
        wanted = normalize(name)
        words = set(content_words(name))
        shared = {text: words & set(text.split()) for text in names}
        sharing = sorted((text for text in names if shared[text]),
                         key=lambda text: (-len(shared[text]), text.split()[0] != wanted.split()[0], len(text), text))
        whole = [text for text in sharing if shared[text] == words]
        close = get_close_matches(wanted, names, n=3 * count, cutoff=0.6)
        return tuple(dict.fromkeys(names[text] for text in [*whole, *close, *sharing]))[:count]

    def _plainly(self, name: str) -> str | None:
        words = normalize(name).split()
        told = " ".join(word for word in words if word not in EMPTY_WORDS)
        found = self.by_key.get(match_key(name)) or self.by_letters.get(compact(name))
        return found or self.by_key.get(match_key(told))

    def _in_context(self, name: str, context: Sequence[str]) -> str | None:
        """The one entry that a generic name gives together with one of the context's words; None unless it is one."""
        words = content_words(name)
        if not words or not all(_kind(word) in GENERIC for word in words):
            return None
        others = dict.fromkeys([*context, *(word for text in context for word in content_words(text))])
        found = {self.by_key.get(match_key(f"{other} {name}"))
                 for other in others if normalize(other) != normalize(name)}
        found.discard(None)
        return found.pop() if len(found) == 1 else None

    def _unknown(self, name: str) -> UserError:
        near = self.nearest(name)
        hint = f"Nearest: {', '.join(map(repr, near))}.\n" if near else ""
        return UserError(
            f"{name!r} is not in the anatomy lexicon ({len(self.entries)} entries).\n{hint}"
            "Rename the label, or describe it in a lexicon file of your own:\n"
            f"  [structures.{_quoted(normalize(name))}]\n"
            '  region = "abdomen"\n  location = "behind the stomach"\n  shape = "an elongated organ"\n' + HOW_TO_ADD)


def load_lexicon(extra: Path | None = None) -> Lexicon:
    """The lexicon that comes with autoseg, with the structures of a user's file.

    A structure of the user's takes the place of ours of the same canonical name, on both sides.

    Raises
    ------
    UserError : the file is absent or not right; a name of one of its structures belongs to another one already.
    """
    return _shipped() if extra is None else build_lexicon({**shipped_structures(), **extra_structures(extra)})


@cache
def _shipped() -> Lexicon:
    return build_lexicon(shipped_structures())


def build_lexicon(written: Written) -> Lexicon:
    """Entries and indices; UserError listing every name that two entries have."""
    entries = {entry.canonical: (entry, file) for name, (structure, file) in written.items()
               for entry in entries_of(name, structure)}
    by_key: dict[Key, str] = {}
    problems = []
    for entry, file in entries.values():
        for name in entry.names:
            other = by_key.setdefault(match_key(name), entry.canonical)
            if other != entry.canonical:
                problems.append(f"{file}: {name!r} of {entry.canonical!r} is a name of {other!r} too "
                                f"({entries[other][1]})")
    if problems:
        raise all_of(problems, "The lexicon has names of two structures:",
                     "Take the name out of one of the two, or say in it which one is meant.")
    found = {name: entry for name, (entry, _) in entries.items()}
    return Lexicon(found, by_key, _letters(found.values()))


def _letters(entries: Iterable[Entry]) -> dict[str, str]:
    """Letters of every name in one run, a side before or behind it; runs that mean two entries are left out."""
    exact: dict[str, set[str]] = {}
    glued: dict[str, set[str]] = {}
    for entry in entries:
        for name in entry.names:
            exact.setdefault(compact(name), set()).add(entry.canonical)
            side, _, rest = normalize(name).partition(" ")
            if entry.mirror is not None and side == entry.side and rest:
                letters = compact(rest)
                for word in (word for word, meant in SIDES.items() if meant == side):
                    for run in (word + letters, letters + word):
                        glued.setdefault(run, set()).add(entry.canonical)
    return {run: next(iter(found)) for run, found in {**glued, **exact}.items() if len(found) == 1}


def _kind(word: str) -> str:
    return match_key(word)[-1]


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "").replace('"', "") + '"'
