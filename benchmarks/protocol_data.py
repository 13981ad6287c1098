"""A dataset as a published protocol sees it: which of its cases train and test, which label is which organ."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol_files import Protocol, PublishedSplit

from autoseg.data.dataset import Dataset, open_dataset
from autoseg.errors import UserError, all_of
from autoseg.records import read_json, write_json
from autoseg.schema import Split


@dataclass(frozen=True)
class MatchedSplit:
    """The dataset's cases on the protocol's sides; `sentence` says how many of the published ones they are.

    `published` is False where none of the dataset's ids is known, so that the sides are not the protocol's.
    """

    split: Split
    published: bool
    missing: tuple[str, ...]
    left_out: tuple[str, ...]
    sentence: str


def case_number(case: str, prefixes: Sequence[str]) -> int | None:
    """The number of a case whose id is a prefix and digits, in any case of letters; None for any other id."""
    for prefix in sorted(prefixes, key=len, reverse=True):
        rest = case.casefold().removeprefix(prefix.casefold())
        if (len(rest) < len(case) or not prefix) and rest.isdecimal():
            return int(rest)
    return None


def match_split(ids: Sequence[str], published: PublishedSplit) -> MatchedSplit:
    """Which cases train and which test.

    Raises
    ------
    UserError : two cases have the same number, or a side of the published split has no case here.
    """
    numbered: defaultdict[int, list[str]] = defaultdict(list)
    for case in sorted(ids):
        if (number := case_number(case, published.prefixes)) is not None:
            numbered[number].append(case)
    wanted = {name: case_number(name, published.prefixes) for name in (*published.train, *published.test)}
    if not set(wanted.values()) & set(numbered):
        return _plain_split(sorted(ids), published)
    if twins := [f"{' and '.join(same)} are both case {number}" for number, same in numbered.items() if len(same) > 1]:
        raise all_of(twins, "Cases cannot be told apart:", "Keep one of each.")
    here = {name: numbered[number][0] for name, number in wanted.items() if number in numbered}
    train, test = (tuple(here[name] for name in side if name in here) for side in (published.train, published.test))
    sentence = (f"{len(train)} of {len(published.train)} training and {len(test)} of {len(published.test)} test cases "
                "present")
    if not train or not test:
        raise UserError(f"{sentence}: both sides need a case.\nAdd cases of the published split.")
    return MatchedSplit(
        Split(train=train, val=test), True, tuple(name for name in wanted if name not in here),
        tuple(sorted(set(ids) - set(train) - set(test))), sentence,
    )


def _plain_split(ids: Sequence[str], published: PublishedSplit) -> MatchedSplit:
    """The first ids train and the last test, in the published proportion."""
    if len(ids) < 2:
        raise UserError(f"{len(ids)} case: training and testing need one each.\nAdd cases.")
    share = len(published.test) / (len(published.train) + len(published.test))
    tested = min(len(ids) - 1, max(1, round(share * len(ids))))
    split = Split(train=tuple(ids[:-tested]), val=tuple(ids[-tested:]))
    sentence = (f"0 of {len(published.train)} training and 0 of {len(published.test)} test cases present: none of the "
                f"{len(ids)} ids is of the published split. The first {len(split.train)} ids train, the last {tested} "
                "test; no result of this run is one of the published protocol")
    return MatchedSplit(split, False, (*published.train, *published.test), (), sentence)


def match_labels(labels: Mapping[str, int], protocol: Protocol) -> dict[str, str]:
    """Organ of the protocol → its name in the dataset, whatever its value there.

    Raises
    ------
    UserError : a label that the protocol does not know, or an organ that the dataset does not declare.
    """
    known = {_folded(alias): organ for alias, organ in protocol.aliases.items()}
    known |= {_folded(organ): organ for organ in protocol.labels}
    found = {known[_folded(name)]: name for name in labels if _folded(name) in known}
    problems = [f"label '{name}': not one of this protocol" for name in labels if _folded(name) not in known]
    problems += [f"label '{organ}': missing" for organ in protocol.labels if organ not in found]
    if problems or len(found) != len(labels):
        raise all_of(problems or ["two labels have names of one organ"], f"The dataset's labels are not those of "
                     f"{protocol.name}:", f"Declare {', '.join(protocol.labels)}.")
    return found


def _folded(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "").replace(" ", "")


def open_published(data: Path, protocol: Protocol, view: Path) -> tuple[Dataset, str]:
    """The dataset in `data`, and how its files were found.

    Beside the layouts that autoseg reads there are: MONAI's dataset_0.json with `training` and `validation` lists; and
    a second set of labels, `labelsTr_<name>` with the names in dataset.json's `labels_<name>`. For these a dataset.json
    that lists the files is written into the folder `view`.
    """
    listing = data / "dataset_0.json"
    if not (data / "dataset.json").exists() and listing.exists():
        content = _object(listing)
        pairs = [entry for key in ("training", "validation") for entry in _entries(content, key)]
        listed = {_stem(entry["label"]): (data / entry["image"], data / entry["label"]) for entry in pairs}
        return _write_view(view, content, content["labels"], listed), listing.name
    dataset = open_dataset(data)
    if len(dataset.labels) == len(protocol.labels):
        return dataset, "dataset.json"
    content = _object(data / "dataset.json")
    for key, labels in content.items():
        folder = data / f"labelsTr_{key.removeprefix('labels_')}"
        if key.startswith("labels_") and folder.is_dir() and len(labels) == len(protocol.labels):
            listed = {case.id: (case.images[0], folder / f"{case.id}{dataset.file_ending}") for case in dataset.cases}
            return _write_view(view, content, labels, listed), folder.name
    return dataset, "dataset.json"  # whose labels `match_labels` refuses


def _object(path: Path) -> dict:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; an object with keys was expected.")
    return content


def _entries(content: Mapping, key: str) -> list[dict[str, str]]:
    """The entries of a list that name an image and its label; test cases are names alone."""
    return [entry for entry in content.get(key, []) if isinstance(entry, dict) and {"image", "label"} <= set(entry)]


def _stem(name: str) -> str:
    return Path(name).name.removesuffix(".gz").removesuffix(".nii")


def _write_view(view: Path, content: Mapping, labels: Mapping, listed: Mapping[str, tuple[Path, Path]]) -> Dataset:
    write_json({
        "name": content.get("name", "published"), "labels": labels,
        "channel_names": content.get("channel_names") or content.get("modality") or {"0": "CT"},
        "dataset": {case: {"images": [str(image.resolve())], "label": str(label.resolve())}
                    for case, (image, label) in listed.items()},
    }, view / "dataset.json")
    return open_dataset(view)
