"""What a `dataset.json` declares, whichever of its three dialects (nnU-Net v2, v1, MSD) it is written in."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.errors import UserError
from autoseg.labelling import BACKGROUND, IGNORE, Labelled, Region, name_parts, read_regions
from autoseg.records import parse_record, read_json
from autoseg.schema import DatasetManifest, ListedCase

LAYOUT = """Expected layout (nnU-Net's):
  dataset.json  {"channel_names": {"0": "T1"}, "labels": {"background": 0, "tumor": 1}}
  imagesTr/     case1_0000.nii.gz, case2_0000.nii.gz, … (_0000 is the channel)
  labelsTr/     case1.nii.gz, case2.nii.gz, …"""


@dataclass(frozen=True)
class Declarations:
    """The content of `dataset.json`, interpreted; `problems` say what is missing or contradictory.

    Attributes
    ----------
    labels : name → value in the files, background first, then by value.
    file_ending, count : None where the file does not say.
    lists : explicit file lists (`dataset`), or None.
    training : (image, label) paths of the MSD form, or None.
    patients : case → patient, of those named.
    regions, ignore : as in `Labelled`. annotated : case → the names annotated in it, of cases in which not all are.
    """

    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str | None
    count: int | None
    lists: dict[str, ListedCase] | None
    training: tuple[tuple[str, str], ...] | None
    problems: tuple[str, ...]
    patients: dict[str, str]
    regions: tuple[Region, ...] = ()
    ignore: int | None = None
    annotated: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def labelled(self) -> Labelled:
        """What label values mean."""
        return Labelled(labels=self.labels, regions=self.regions, ignore=self.ignore)


def read_declarations(folder: Path) -> Declarations:
    """Interpret `folder`/dataset.json.

    Raises
    ------
    UserError : absent, not JSON, keys missing or ill-typed. What is contradictory stands in `problems`.
    """
    path = folder / "dataset.json"
    content = read_json(path, LAYOUT)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; an object with keys was "
                        f"expected.\n{LAYOUT}")
    missing = [] if "labels" in content else ["labels"]
    if not {"channel_names", "modality"} & set(content):
        missing.append("channel_names (v1: modality)")
    if missing:
        raise UserError(f"{path} lacks {' and '.join(missing)}.\n{LAYOUT}")
    manifest = parse_record(DatasetManifest, content, path, LAYOUT)
    channel_names, channel_problems = _channels(manifest)
    labels, regions, ignore, label_problems = _labels(manifest)
    ending = manifest.file_ending
    ending_problems = [] if ending is None or ending.startswith(".") else [
        f"file_ending is '{ending}'; it must begin with a dot, e.g. '.nii.gz'"
    ]
    # A dataset.json with nnU-Net v2's keys is read as nnU-Net v2 reads it: by its folders.
    by_folder = manifest.channel_names is not None and ending is not None
    training = None if by_folder or manifest.dataset is not None else manifest.training
    pairs, pair_problems = _pairs(training)
    foreground = Labelled(labels=labels, regions=regions).foreground
    annotated, annotation_problems = _annotated(manifest, tuple(foreground))
    problems = [*channel_problems, *label_problems, *annotation_problems, *ending_problems, *pair_problems]
    return Declarations(
        manifest.name or folder.name, channel_names, labels, ending, manifest.numTraining, manifest.dataset,
        pairs, tuple(f"dataset.json: {problem}" for problem in problems), manifest.patients or {},
        regions, ignore, annotated,
    )


def _channels(manifest: DatasetManifest) -> tuple[tuple[str, ...], list[str]]:
    """The names by channel number."""
    newer, older = manifest.channel_names, manifest.modality
    names = newer if newer is not None else older or {}
    problems = []
    if newer is not None and older is not None and newer != older:
        problems.append(f"channel_names {newer} contradicts modality {older}; keep channel_names")
    expected = [str(number) for number in range(len(names))]
    if not names or sorted(names) != sorted(expected):
        problems.append(f"channel numbers are {', '.join(sorted(names)) or 'missing'}; expected 0, 1, 2, … "
                        "without gaps")
        return tuple(names.values()), problems
    return tuple(names[number] for number in expected), problems


def _labels(manifest: DatasetManifest) -> tuple[dict[str, int], tuple[Region, ...], int | None, list[str]]:
    """name → value, background first, then by value; regions; the ignore label; what is wrong."""
    read = [_label(key, entry) for key, entry in manifest.labels.items()]
    problems = [label for label in read if isinstance(label, str)]
    pairs = [label for label in read if not isinstance(label, str)]
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            problems.append(f"labels: the name '{name}' stands {times} times; every label needs its own name")
    entries = dict(pairs)
    ignored = entries.pop(IGNORE, None)
    regions, region_problems = read_regions(entries, manifest.regions_class_order)
    if regions or region_problems:
        labels = name_parts(entries)
        missing = [] if BACKGROUND in entries else [f'labels: no \'{BACKGROUND}\'; add "{BACKGROUND}": 0']
        problems += [*region_problems, *missing]
    else:
        problems += _twin_values([(name, values[0]) for name, values in entries.items()])
        in_order = sorted(entries.items(), key=lambda pair: (pair[0] != BACKGROUND, pair[1]))
        labels = {name: values[0] for name, values in in_order}
        problems += _name_problems(labels)
    return labels, regions, *_ignore(ignored, labels, problems)


def _ignore(
    ignored: tuple[int, ...] | None, labels: dict[str, int], problems: list[str]
) -> tuple[int | None, list[str]]:
    """The ignore label, and all problems: it must be one value above all others."""
    highest = max(labels.values(), default=0)
    if ignored is not None and (len(ignored) != 1 or ignored[0] <= highest):
        return None, [*problems, f"labels: 'ignore' is {', '.join(map(str, ignored))}; one value above all others was "
                                 f"expected. Give it {highest + 1}, here and in the label files"]
    return None if ignored is None else ignored[0], problems


def _twin_values(pairs: list[tuple[str, int]]) -> list[str]:
    problems = []
    for value, times in Counter(value for _, value in pairs).items():
        if times > 1:
            names = " and ".join(f"'{name}'" for name, other in pairs if other == value)
            problems.append(f"labels: {names} have the same value {value}; every label needs its own value")
    return problems


def _label(key: str, entry: int | str | list[int]) -> tuple[str, tuple[int, ...]] | str:
    """(name, values) of one entry, or what is wrong with it. MSD and v1 write value: name, v2 name: value."""
    if isinstance(entry, list) and len(entry) != 1:
        return (key, tuple(entry)) if entry else f"labels: '{key}' is an empty list; integers were expected"
    if isinstance(entry, list):
        entry = entry[0]
    if isinstance(entry, str) and _is_integer(key):
        name, value = entry, int(key)
    elif isinstance(entry, int) or _is_integer(entry):
        name, value = key, int(entry)
    else:
        return f"labels: '{key}': '{entry}' holds no integer; expected name: value"
    plain = name.strip().lower()
    return (plain if plain in (BACKGROUND, IGNORE) else name), (value,)


def _annotated(manifest: DatasetManifest, names: tuple[str, ...]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Case → the names annotated in it, of the cases in which some are not."""
    given = manifest.annotated_labels or {}
    problems = [f"annotated_labels: case '{case}': '{name}' is none of {', '.join(names)}"
                for case, listed in given.items() for name in listed if name not in (*names, BACKGROUND)]
    problems += [f"annotated_labels: case '{case}' has no annotated label; leave the case out of the dataset"
                 for case, listed in given.items() if not set(listed) & set(names)]
    annotated = {case: tuple(name for name in names if name in listed) for case, listed in given.items()}
    never = [name for name in names if annotated and manifest.numTraining == len(annotated)
             and not any(name in listed for listed in annotated.values())]
    problems += [f"annotated_labels: '{name}' is annotated in no case" for name in never]
    return {case: listed for case, listed in annotated.items() if len(listed) < len(names)}, problems


def _name_problems(labels: dict[str, int]) -> list[str]:
    problems = []
    if BACKGROUND not in labels:
        named = [name for name, value in labels.items() if value == 0]
        zero = f" (value 0 is called '{named[0]}': rename it)" if named else ""
        problems.append(f"labels: no '{BACKGROUND}'; add \"{BACKGROUND}\": 0{zero}")
    elif len(labels) < 2:
        problems.append("labels: only background is declared; at least one label to segment was expected")
    if labels.get(BACKGROUND, 0) != 0:
        problems.append(f"labels: {BACKGROUND} has value {labels[BACKGROUND]}; 0 was expected. Exchange the values "
                        "in dataset.json and in the label files")
    return problems


def _pairs(training: list[dict[str, str]] | None) -> tuple[tuple[tuple[str, str], ...] | None, list[str]]:
    """The MSD `training` list as (image, label)."""
    if training is None:
        return None, []
    problems = [f"training entry {number} {entry} lacks 'image' or 'label'"
                for number, entry in enumerate(training) if not {"image", "label"} <= set(entry)]
    pairs = tuple((entry["image"], entry["label"]) for entry in training if {"image", "label"} <= set(entry))
    return pairs, problems


def _is_integer(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()
