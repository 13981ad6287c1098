"""What the labels of nnU-Net's dataset.json mean, in the order of its network's channels."""

from autoseg.labelling import BACKGROUND, IGNORE, Labelled, name_parts, read_regions
from autoseg.schema import DatasetManifest


def read_labels(manifest: DatasetManifest) -> tuple[Labelled | None, list[str]]:
    """The labels, and what is wrong with them; None where they cannot be told.

    As in nnU-Net v2, a dataset has regions where an entry has several values; then every entry but the background is
    one, in the order of the file, and `regions_class_order` says which value each is painted with.
    """
    entries: dict[str, tuple[int, ...]] = {}
    problems = []
    for name, entry in manifest.labels.items():
        try:
            entries[name] = tuple(int(value) for value in (entry if isinstance(entry, list) else [entry]))
        except ValueError:
            problems.append(f"labels: {name!r} is {entry!r}; a number or a list of numbers was expected")
    ignore = entries.pop(IGNORE, None)
    if entries.get(BACKGROUND) != (0,):
        problems.append(f"labels: {BACKGROUND!r} with value 0 was expected")
    problems += [f"labels: {name!r} is an empty list" for name, values in entries.items() if not values]
    values = sorted({0, *(value for entry in entries.values() for value in entry)})
    if ignore is not None and ignore != (values[-1] + 1,):
        problems.append(f"labels: the ignore label is {', '.join(map(str, ignore))}; the one after the highest, "
                        f"{values[-1] + 1}, was expected")
    regions, region_problems = read_regions(entries, manifest.regions_class_order)
    problems += region_problems
    if not regions and not region_problems and values != list(range(len(entries))):
        problems.append(f"labels: the values are {', '.join(map(str, values))} for {len(entries)} names; 0, 1, 2, … "
                        "were expected, one name each")
    if problems:
        return None, problems
    labels = name_parts(entries)
    return Labelled(labels=labels, regions=regions, ignore=ignore[0] if ignore else None), []
