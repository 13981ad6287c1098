"""A dataset folder → its cases: which files belong to which case, and every problem with that at once."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.data.content import unlistable
from autoseg.data.manifest import LAYOUT, Declarations, read_declarations
from autoseg.data.volume import PICTURE_ENDINGS, SUPPORTED_ENDINGS
from autoseg.errors import UserError, all_of
from autoseg.labelling import Labelled, Region
from autoseg.schema import ListedCase

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_OTHER_IMAGE_ENDINGS = (".jpg", ".jpeg", ".dcm", ".mgz", ".npy", ".npz")


@dataclass(frozen=True)
class Case:
    """One examination: its channel files in order (or one file that holds all), its labels, whose it is if known.

    `annotated`: the names that are annotated in it; None: all.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str | None = None
    annotated: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Dataset:
    """Training cases of a folder.

    Attributes
    ----------
    labels : as `Labelled`; `regions`, `ignore` likewise.
    cases : sorted by id.
    channels_in_one_file : several channels are declared and every case has one (4-D) file that holds them.
    """

    root: Path
    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str
    cases: tuple[Case, ...]
    channels_in_one_file: bool
    regions: tuple[Region, ...] = ()
    ignore: int | None = None

    @property
    def labelled(self) -> Labelled:
        """What label values mean."""
        return Labelled(labels=self.labels, regions=self.regions, ignore=self.ignore)

    @property
    def annotated(self) -> dict[str, tuple[str, ...]]:
        """As `annotated_in`, of all cases."""
        return annotated_in(self.cases)


def annotated_in(cases: Iterable[Case]) -> dict[str, tuple[str, ...]]:
    """Case → the names annotated in it, of the cases in which not all are."""
    return {case.id: case.annotated for case in cases if case.annotated is not None}


def open_dataset(folder: Path) -> Dataset:
    """The dataset in `folder`: nnU-Net v2 or v1 raw, MSD (`training` list), or explicit file lists
    (`dataset`).

    No image is opened.

    Raises
    ------
    UserError : lists every problem of dataset.json and of the files' names together.
    """
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {state}; a dataset folder was expected.\n{LAYOUT}")
    if "dataset.json" not in _visible_names(folder):
        inside = sorted(path.parent.name for path in folder.glob("*/dataset.json"))
        hint = f"\nInside it there are datasets; give one of them: {', '.join(inside)}." if inside else ""
        raise UserError(f"{folder / 'dataset.json'} does not exist.{hint}\n{LAYOUT}")
    declared = read_declarations(folder)
    if declared.lists is not None:
        cases, ending, problems = _from_lists(folder, declared, declared.lists)
    elif declared.training is not None:
        cases, ending, problems = _from_training(folder, declared, declared.training)
    else:
        cases, ending, problems = _from_folders(folder, declared)
    problems = [*declared.problems, *problems, *_id_problems(cases), *_count_problems(declared, cases, problems)]
    cases = [replace(case, patient=declared.patients.get(case.id), annotated=declared.annotated.get(case.id))
             for case in cases]
    problems.extend(f"dataset.json: {key}: '{case}' is no case of this dataset"
                    for key, named in (("patients", declared.patients), ("annotated_labels", declared.annotated))
                    for case in sorted(set(named) - {case.id for case in cases}))
    if problems:
        heading = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the dataset {folder}:"
        raise all_of(problems, heading, "Mend these, then run the command again. Nothing was written.")
    one_file = len(declared.channel_names) > 1 and all(len(case.images) == 1 for case in cases)
    return Dataset(
        folder, declared.name, declared.channel_names, declared.labels, ending,
        tuple(sorted(cases, key=lambda case: case.id)), one_file and ending not in PICTURE_ENDINGS,
        declared.regions, declared.ignore,
    )


def list_images(
    folder: Path, channel_count: int, file_ending: str, whose: str = "which the model was trained on"
) -> tuple[Case, ...]:
    """The cases without labels in a folder, sorted by id: `case_0000.ending`, `case_0001.ending`, …

    One channel, or a file that holds all channels, may also be named plainly: `case.ending`. A channel that
    is missing stays in the case's list, so that reading this case fails and the others do not.

    Raises
    ------
    UserError : no folder, no image with this ending, images of a related format beside them.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}; "
                        f"a folder of images ending in '{file_ending}' was expected.")
    names = _visible_names(folder)
    if others := [name for name in names if _is_relative(_image_ending(name), file_ending)]:
        raise all_of([str(folder / name) for name in others],
                     f"{len(others)} images in {folder} do not end in '{file_ending}', {whose}:",
                     "Convert them, or move them out of the folder.")
    stems = [name.removesuffix(file_ending) for name in names if _image_ending(name) == file_ending]
    if not stems:
        raise UserError(f"{folder} holds no image ending in '{file_ending}', {whose}; "
                        f"{_found_endings(names)}. Name the images case_0000{file_ending}.")
    grouped: dict[str, set[int]] = defaultdict(set)
    cases = []
    for stem in stems:
        match = _CHANNEL.fullmatch(stem)
        numbered = match and (int(match["channel"]) < channel_count or f"{match['case']}_0000" in stems)
        if match and numbered:
            grouped[match["case"]].add(int(match["channel"]))
        else:
            cases.append(Case(stem, (folder / f"{stem}{file_ending}",), None))
    for case, channels in grouped.items():
        together = channels == {0} and file_ending in PICTURE_ENDINGS
        wanted = sorted(channels if together else channels | set(range(channel_count)))
        files = tuple(folder / _channel_name(case, number, file_ending) for number in wanted)
        cases.append(Case(case, files, None))
    twins = [f"{folder / case}{file_ending} and {_channel_name(case, 0, file_ending)} are both case '{case}'"
             for case, times in Counter(case.id for case in cases).items() if times > 1]
    if twins:
        raise all_of(twins, f"Two images have the same case id in {folder}:", "Rename or remove one of each.")
    return tuple(sorted(cases, key=lambda case: case.id))


def _from_folders(folder: Path, declared: Declarations) -> tuple[list[Case], str, list[str]]:
    """The cases of imagesTr and labelsTr."""
    images, labels = folder / "imagesTr", folder / "labelsTr"
    if absent := [path for path in (images, labels) if not path.is_dir()]:
        problems = [f"{path} does not exist; a folder was expected" for path in absent]
        return [], declared.file_ending or "", problems
    image_names, label_names = _visible_names(images), _visible_names(labels)
    ending = declared.file_ending or _common_ending(image_names)
    if ending.lower() not in SUPPORTED_ENDINGS:
        what = f"file_ending is '{ending}'" if declared.file_ending else _found_endings(image_names)
        return [], ending, [f"{images}: {what}; one of {', '.join(SUPPORTED_ENDINGS)} was expected"]
    problems = _ending_problems(images, image_names, ending) + _ending_problems(labels, label_names, ending)
    channels: dict[str, set[int]] = defaultdict(set)
    for name in image_names:
        if _image_ending(name) != ending:
            continue
        if match := _CHANNEL.fullmatch(name.removesuffix(ending)):
            channels[match["case"]].add(int(match["channel"]))
        else:
            problems.append(f"{images / name}: no channel number; expected a name like "
                            f"{_channel_name(name.removesuffix(ending), 0, ending)}")
    labelled = {name.removesuffix(ending) for name in label_names if _image_ending(name) == ending}
    cases = []
    for case, found in sorted(channels.items()):
        problems.extend(_channel_problems(images, case, found, len(declared.channel_names), ending))
        if case not in labelled:
            problems.append(f"{labels / case}{ending} is missing: case '{case}' has images but no labels")
        files = tuple(images / _channel_name(case, number, ending) for number in sorted(found))
        cases.append(Case(case, files, labels / f"{case}{ending}"))
    problems.extend(f"{labels / case}{ending}: labels without an image; expected "
                    f"{images / _channel_name(case, 0, ending)}" for case in sorted(labelled - set(channels)))
    return cases, ending, problems


def _channel_problems(images: Path, case: str, found: set[int], count: int, ending: str) -> list[str]:
    """Channels that are missing or not declared; one picture may hold all colour channels."""
    if found == {0} and ending in PICTURE_ENDINGS:
        return []
    missing = sorted(set(range(count)) - found)
    surplus = sorted(found - set(range(count)))
    return [
        *(f"{images / _channel_name(case, number, ending)} is missing: {count} channels are declared"
          for number in missing),
        *(f"{images / _channel_name(case, number, ending)}: channel {number} is not declared; dataset.json "
          f"declares {count}" for number in surplus),
    ]


def _from_training(
    folder: Path, declared: Declarations, pairs: tuple[tuple[str, str], ...]
) -> tuple[list[Case], str, list[str]]:
    """The cases of MSD's `training` list; an image that does not exist may stand as v1's `case_0000`, …"""
    problems = _dollar_problems([path for pair in pairs for path in pair])
    images = [image for image, _ in pairs]
    ending = declared.file_ending or _common_ending(images)
    if ending.lower() not in SUPPORTED_ENDINGS:
        return [], ending, [*problems, f"dataset.json: training: {_found_endings(images)}; one of "
                            f"{', '.join(SUPPORTED_ENDINGS)} was expected"]
    count = len(declared.channel_names)
    cases = []
    for image_name, label_name in pairs:
        image, label = folder / image_name, folder / label_name
        case = label.name.removesuffix(ending)
        stem = image.name.removesuffix(ending)
        numbered = tuple(image.with_name(_channel_name(stem, number, ending)) for number in range(count))
        files = numbered if not os.path.exists(image) and numbered and os.path.exists(numbered[0]) else (image,)
        cases.append(Case(case, files, label))
    problems.extend(_absent_files(cases))
    return cases, ending, [*problems, *_twin_problems(cases)]


def _from_lists(
    folder: Path, declared: Declarations, lists: dict[str, ListedCase]
) -> tuple[list[Case], str, list[str]]:
    """The cases of the explicit lists; paths are absolute or relative to the dataset folder."""
    every = [path for listed in lists.values() for path in (*listed.images, listed.label)]
    problems = _dollar_problems(every)
    ending = declared.file_ending or _common_ending(every)
    if ending.lower() not in SUPPORTED_ENDINGS:
        return [], ending, [*problems, f"dataset.json: dataset: {_found_endings(every)}; one of "
                            f"{', '.join(SUPPORTED_ENDINGS)} was expected"]
    problems.extend(f"{path}: dataset.json's file_ending is '{ending}'; all files need this ending"
                    for path in every if not path.endswith(ending))
    count = len(declared.channel_names)
    cases = []
    for case, listed in lists.items():
        if len(listed.images) != count and len(listed.images) != 1:
            problems.append(f"dataset.json: dataset: case '{case}' lists {len(listed.images)} images; "
                            f"{count} channels are declared")
        cases.append(Case(case, tuple(folder / image for image in listed.images), folder / listed.label))
    if len({len(case.images) for case in cases}) > 1:
        problems.append("dataset.json: dataset: some cases list one image, others several; expected the same "
                        "of all")
    return cases, ending, [*problems, *_absent_files(cases)]


def _count_problems(declared: Declarations, cases: list[Case], problems: list[str]) -> list[str]:
    """No cases (unless a problem explains it), or another number than numTraining says."""
    if not cases:
        return [] if problems else ["no cases were found; expected images in imagesTr and labels in labelsTr"]
    if declared.count is not None and declared.count != len(cases):
        return [f"dataset.json: numTraining is {declared.count}, but there are {len(cases)} cases; "
                "correct the number or add the missing cases"]
    return []


def _id_problems(cases: list[Case]) -> list[str]:
    """Ids that cannot name files, or would name files elsewhere; ids stand in dataset.json or in files' names."""
    return [f"case id '{case.id}' cannot name files; a name was expected that does not begin with a dot and holds "
            "neither / nor \\. Rename the case"
            for case in cases if not case.id or case.id.startswith(".") or set(case.id) & set("/\\\0")]


def _absent_files(cases: list[Case]) -> list[str]:
    listed = [(case.id, path) for case in cases for path in (*case.images, case.label) if path is not None]
    return [f"{path} does not exist, but dataset.json lists it for case '{case}'"
            for case, path in listed if not os.path.isfile(path)]


def _twin_problems(cases: list[Case]) -> list[str]:
    return [f"dataset.json: training: case '{case}' is listed {times} times; every label file needs its own "
            "name"
            for case, times in Counter(case.id for case in cases).items() if times > 1]


def _dollar_problems(paths: list[str]) -> list[str]:
    return [f"dataset.json: '{path}': environment variables are not expanded; write the path itself"
            for path in paths if "$" in path]


def _ending_problems(folder: Path, names: list[str], ending: str) -> list[str]:
    """Images of another format than declared; when no file has the ending at all, one line says so."""
    wrong = [name for name in names if _image_ending(name) and _image_ending(name) != ending]
    if not any(_image_ending(name) == ending for name in names):
        return [f"{folder} holds no file ending in '{ending}'; {_found_endings(names)}"]
    return [f"{folder / name}: ends in '{_image_ending(name)}', but the dataset's file ending is '{ending}'"
            for name in wrong]


def _common_ending(names: list[str]) -> str:
    """The most frequent image ending; "" when there is none."""
    counts = Counter(_image_ending(name) for name in names if _image_ending(name))
    return counts.most_common(1)[0][0] if counts else ""


def _found_endings(names: list[str]) -> str:
    counts = Counter(_image_ending(name) or os.path.splitext(name)[1] or name for name in names)
    found = ", ".join(f"'{ending}' ({count})" for ending, count in counts.most_common(5))
    return f"the files there end in {found}" if found else "there are no files"


def _image_ending(name: str) -> str:
    """The ending of a known image format as it is written in `name`, or ""."""
    for ending in sorted((*SUPPORTED_ENDINGS, *_OTHER_IMAGE_ENDINGS), key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[-len(ending):]
    return ""


def _is_relative(ending: str, file_ending: str) -> bool:
    """Another format of the same kind (volumes, or pictures) than `file_ending`."""
    same_kind = (ending.lower() in PICTURE_ENDINGS) == (file_ending in PICTURE_ENDINGS)
    return ending.lower() in SUPPORTED_ENDINGS and ending != file_ending and same_kind


def _channel_name(case: str, channel: int, ending: str) -> str:
    return f"{case}_{channel:04d}{ending}"


def _visible_names(folder: Path) -> list[str]:
    """Names of the files in a folder, sorted; hidden ones (.DS_Store, ._case.nii.gz) are left out.

    UserError where the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.is_dir()]
    except OSError as error:
        raise unlistable(folder, error) from None
    return sorted(name for name in names if not name.startswith("."))
