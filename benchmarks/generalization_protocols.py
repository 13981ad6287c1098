"""Published protocols of single-source generalization, presets/protocols/generalization/<name>.toml, and their data.

A protocol says which datasets are its domains, how their files lie, which cases train, and what was published.
`open_published_domain` makes a dataset that autoseg reads of each layout; masks are rewritten where their values are
not labels. Facts that no public text states are "unknown"; comments in the files say where each of the others stands.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Integer
from protocol_data import case_number
from protocol_files import Unknown

from autoseg.data.dataset import Dataset, open_dataset
from autoseg.data.volume import read_labels, write_labels
from autoseg.errors import UserError, all_of
from autoseg.records import Record, parse_toml, write_json

SEGMENTATION = re.compile(r"(?P<case>.+)_segmentation", re.IGNORECASE)


class MaskValues(Record):
    """Label → the values that mean it in published masks; `others`: the label of every other value but 0."""

    values: dict[str, tuple[int, ...]]
    others: str | None = None


class PublishedDomain(Record):
    """One domain. `folders`: names that its folder, or its case tables, may have; the first is the published one.

    `cases`: as many were published. `train`, `validation`, `test`: numbers of cases (first, last), where the split goes
    by number; `tested`: endings of the tables whose cases are tested.
    """

    title: str
    folders: tuple[str, ...]
    cases: int | Unknown
    train: tuple[int, int] | None = None
    validation: tuple[int, int] | None = None
    prefixes: tuple[str, ...] = ("",)


class SplitRule(Record):
    """How a source's cases are shared out, and which of a target's are tested.

    "shares": sorted by id, `shares` of them test, validate, train, in this order. "numbers": as the domain says.
    "tables": those of the tables ending in `train_table`; of a target those in `test_table`.
    `certain`: whether this is known to be what was run.
    """

    kind: Literal["shares", "numbers", "tables"]
    shares: tuple[float, float, float] | None = None
    train_table: str | None = None
    test_table: str | None = None
    certain: bool
    remark: str


class PublishedDirection(Record):
    """A source and its targets, and Dice in % as printed at `from`; "unknown" where no text that we read states it."""

    source: str
    targets: tuple[str, ...]
    dice: dict[str, float | Unknown]


class GeneralizationProtocol(Record):
    """presets/protocols/generalization/<name>.toml.

    `layout`: "autoseg" folders that autoseg reads; "paired" Case00.nii.gz beside Case00_segmentation.nii.gz; "tables"
    of image and mask paths. `metric`: what the published Dice is, in a sentence.
    """

    name: str
    title: str
    layout: Literal["autoseg", "paired", "tables"]
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    masks: MaskValues | None = None
    preprocessing: str
    metric: str
    domains: dict[str, PublishedDomain]
    split: SplitRule
    directions: tuple[PublishedDirection, ...]
    not_repeated: tuple[str, ...]


@dataclass(frozen=True)
class DomainSplit:
    """Ids of a domain: as a source, `train`, `validation` and `held_out`; as a target, `tested`."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]
    tested: tuple[str, ...]


def generalization_names() -> list[str]:
    """Names of the protocols that come with autoseg."""
    folder = resources.files("presets") / "protocols" / "generalization"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_generalization(name: str) -> GeneralizationProtocol:
    """A protocol by name; UserError where there is none, or where its file holds something else."""
    if name not in generalization_names():
        raise UserError(f"{name}: no such protocol. Known: {', '.join(generalization_names())}.")
    path = resources.files("presets") / "protocols" / "generalization" / f"{name}.toml"
    protocol = parse_toml(GeneralizationProtocol, path.read_text(encoding="utf-8"), Path(f"{name}.toml"))
    named = {domain for one in protocol.directions for domain in (one.source, *one.targets, *one.dice)}
    if unknown := sorted(named - set(protocol.domains)):
        raise UserError(f"{name}.toml: directions name {', '.join(unknown)}. Declare each as a domain.")
    return protocol


# ---------------------------------------------------------------- data
def open_published_domain(protocol: GeneralizationProtocol, domain: str, data: Path, view: Path) -> Dataset:
    """A domain's dataset under `data`; what autoseg cannot read as it lies is listed and rewritten in `view`.

    Raises
    ------
    UserError : no folder or table of a known name, an image without its mask, a mask with undeclared values.
    """
    published = protocol.domains[domain]
    if protocol.layout == "tables":
        listed = {case: pair for table in _tables(protocol, published, data) for case, pair in _rows(table, data)}
    else:
        folder = _first(data, published.folders)
        if protocol.layout == "autoseg":
            return open_dataset(folder)
        listed = _pairs(folder)
    masks = {case: _rewritten(protocol, case, mask, view) for case, (_, mask) in listed.items()}
    write_json({
        "name": f"{protocol.name} {domain}", "labels": {"background": 0, **protocol.labels},
        "channel_names": {str(number): name for number, name in enumerate(protocol.channel_names)},
        "dataset": {case: {"images": [str(image.resolve())], "label": str(masks[case].resolve())}
                    for case, (image, _) in listed.items()},
    }, view / "dataset.json")
    return open_dataset(view)


def split_domain(protocol: GeneralizationProtocol, domain: str, ids: Sequence[str], data: Path) -> DomainSplit:
    """Which of a domain's cases train, validate and are held out where it is the source, and are tested as a target."""
    rule, published, ordered = protocol.split, protocol.domains[domain], sorted(ids)
    if rule.kind == "tables":
        assert rule.train_table is not None
        assert rule.test_table is not None
        sides = [{case for table in _tables(protocol, published, data, ending) for case, _ in _rows(table, data)}
                 for ending in (rule.train_table, rule.test_table)]
        train, tested = (tuple(case for case in ordered if case in side) for side in sides)
        return DomainSplit(train, (), tested, tested)
    if rule.kind == "shares":
        assert rule.shares is not None
        tests, checks = (round(share * len(ordered)) for share in rule.shares[:2])
        return DomainSplit(tuple(ordered[tests + checks :]), tuple(ordered[tests : tests + checks]),
                           tuple(ordered[:tests]), tuple(ordered))
    numbered = {case: case_number(case, published.prefixes) for case in ordered}
    train, validation = (tuple(case for case, number in numbered.items() if _within(number, span))
                         for span in (published.train, published.validation))
    return DomainSplit(train, validation, (), tuple(ordered))


def _within(number: int | None, span: tuple[int, int] | None) -> bool:
    return number is not None and span is not None and span[0] <= number <= span[1]


def _first(data: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (data / name).is_dir():
            return data / name
    raise UserError(f"{data} has none of the folders {', '.join(names)}.\nGive the folder that holds the domains.")


def _tables(protocol: GeneralizationProtocol, published: PublishedDomain, data: Path,
            ending: str | None = None) -> list[Path]:
    """The domain's case tables that are there: of both sides, or of the side of this ending."""
    endings = (protocol.split.train_table, protocol.split.test_table) if ending is None else (ending,)
    paths = [data / f"{name}{one}" for name in published.folders for one in endings]
    if found := [path for path in paths if path.is_file()]:
        return found
    if ending is not None:
        return []
    raise UserError(f"{data} has none of the tables {', '.join(path.name for path in paths)}.\nGive the folder that "
                    "holds them.")


def _rows(table: Path, data: Path) -> list[tuple[str, tuple[Path, Path]]]:
    """(case, (image, mask)) of a table with the columns image and mask: paths below `data`."""
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"image", "mask"} <= set(rows[0]):
        raise UserError(f"{table} has no columns image and mask. Give the table as it was published.")
    pairs = [(data / row["image"], data / row["mask"]) for row in rows]
    if absent := [str(path) for pair in pairs for path in pair if not path.is_file()]:
        raise all_of(absent, f"{table} names files that do not exist:", "Put them where the table says.")
    return [(_case_of(row["image"]), pair) for row, pair in zip(rows, pairs, strict=True)]


def _case_of(name: str) -> str:
    """A name of its own for every image of a table: its path without the ending, in one word."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name.rpartition(".")[0]).strip("_")


def _pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Case → (image, mask) of a folder with Case00.nii.gz and Case00_segmentation.nii.gz, in any case of letters."""
    masks, images = dict[str, Path](), dict[str, Path]()
    for path in sorted(folder.glob("*.nii*")):
        stem = path.name.removesuffix(".gz").removesuffix(".nii")
        match = SEGMENTATION.fullmatch(stem)
        (masks if match else images)[match["case"] if match else stem] = path
    problems = [f"{images[case]}: has no mask" for case in sorted(set(images) - set(masks))]
    problems += [f"{masks[case]}: has no image" for case in sorted(set(masks) - set(images))]
    if problems or not images:
        raise all_of(problems or [f"{folder}: no Case00.nii.gz"], "The domain's files are not paired:",
                     "Each image needs its mask, Case00_segmentation.nii.gz.")
    return {case: (image, masks[case]) for case, image in images.items()}


def _rewritten(protocol: GeneralizationProtocol, case: str, mask: Path, view: Path) -> Path:
    """The mask with the protocol's labels instead of the published values; as it is where these are the labels."""
    if protocol.masks is None:
        return mask
    read = read_labels(mask)
    path = view / "labels" / f"{case}{''.join(mask.suffixes[-2:]) if mask.suffixes[-1] == '.gz' else mask.suffix}"
    write_labels(as_labels(read.voxels[0], protocol.labels, protocol.masks, mask), read, path)
    return path


def as_labels(voxels: Integer[np.ndarray, "z y x"], labels: Mapping[str, int], masks: MaskValues,
              path: Path) -> Integer[np.ndarray, "z y x"]:
    """Published values → labels; UserError for a value that means none."""
    found = np.zeros(voxels.shape, np.uint8)
    known = {value for values in masks.values.values() for value in values}
    rest = (voxels != 0) & ~np.isin(voxels, list(known))
    if masks.others is not None:
        found[rest] = labels[masks.others]
    elif rest.any():
        raise UserError(f"{path} holds {np.unique(voxels[rest]).tolist()[:5]}; expected 0 and {sorted(known)}.\nGive "
                        "the masks as they were published.")
    for label, values in masks.values.items():
        found[np.isin(voxels, values)] = labels[label]
    return found
