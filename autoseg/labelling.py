"""What the values in label files mean: labels that exclude each other, regions that overlap, and the ignore label.

Inside, labels are 0, 1, 2, … in the order of `labels`; the ignore label, where there is one, comes last.
"""

from pydantic import Field

from autoseg.records import Record


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
