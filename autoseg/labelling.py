"""What the values in label files mean: labels that exclude each other, regions that overlap, and the ignore label.

Inside, labels are 0, 1, 2, … in the order of `labels`; the ignore label, where there is one, comes last.
"""

from collections.abc import Mapping

from pydantic import Field

from autoseg.records import Record

BACKGROUND, IGNORE = "background", "ignore"


class Region(Record):
    """A union of labels that a network gives as a mask of its own; regions may overlap.

    Attributes
    ----------
    values : of the files' labels that make it up.
    painted : the value it gets in a mask that holds one value per voxel (nnU-Net's `regions_class_order`).
    """

    name: str
    values: tuple[int, ...] = Field(min_length=1)
    painted: int


class Labelled(Record):
    """A record that says what label values mean.

    Attributes
    ----------
    labels : name → value in the user's files, background (0) first, then by value; without the ignore label. Where
        regions are declared, these are their parts; a part without a name of its own is called `value_<n>`.
    regions : in the order in which they are painted, later ones over earlier ones, and of the network's channels;
        empty: the labels themselves are told apart.
    ignore : the value of voxels that nobody annotated: no loss, no score. Always the highest.
    """

    labels: dict[str, int]
    regions: tuple[Region, ...] = ()
    ignore: int | None = None

    @property
    def values(self) -> tuple[int, ...]:
        """The files' value of every internal label 0, 1, 2, …; the ignore label last."""
        return (*self.labels.values(), *(() if self.ignore is None else (self.ignore,)))

    @property
    def internal_ignore(self) -> int | None:
        """The ignore label inside."""
        return None if self.ignore is None else len(self.labels)

    @property
    def outputs(self) -> tuple[str, ...]:
        """A network's channels by name: the regions, or background and the labels."""
        return tuple(region.name for region in self.regions) or tuple(self.labels)

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """What is segmented and scored: name → the files' values that make it up."""
        if self.regions:
            return {region.name: region.values for region in self.regions}
        return {name: (value,) for name, value in self.labels.items() if value != 0}

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """Of every name in `foreground`: the internal labels that make it up."""
        position = {value: internal for internal, value in enumerate(self.labels.values())}
        return tuple(tuple(position[value] for value in values) for values in self.foreground.values())


def read_regions(
    entries: Mapping[str, tuple[int, ...]], order: list[int] | None
) -> tuple[tuple[Region, ...], list[str]]:
    """The regions of nnU-Net's `labels` and `regions_class_order`, and what is wrong with them.

    There are regions where an entry has several values; then every entry but the background is one, in the order of
    `entries` (name → values, without the ignore label).
    """
    if all(len(values) < 2 for values in entries.values()):
        return (), []
    declared = {name: values for name, values in entries.items() if set(values) - {0}}
    if order is None:
        return (), [f"regions_class_order is missing; the labels are regions ({', '.join(declared)}), and one value to "
                    "paint each with was expected"]
    if len(order) != len(declared):
        return (), [f"regions_class_order has {len(order)} values; one for each of the {len(declared)} regions "
                    f"({', '.join(declared)}) was expected"]
    known = {value for values in entries.values() for value in values}
    if unknown := [value for value in order if value not in known]:
        return (), [f"regions_class_order holds {', '.join(map(str, unknown))}, which is no label value"]
    return tuple(
        Region(name=name, values=values, painted=painted)
        for (name, values), painted in zip(declared.items(), order, strict=True)
    ), []


def name_parts(entries: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Name → value of every value in `entries`, ascending; `value_<n>` where no entry is that value alone."""
    named = {values[0]: name for name, values in reversed(list(entries.items())) if len(values) == 1}
    values = sorted({value for entry in entries.values() for value in entry} | {0})
    return {named.get(value, f"value_{value}" if value else BACKGROUND): value for value in values}
