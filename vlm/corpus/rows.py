"""What a reader yields: a row of a source before its image is opened, or why a row cannot be used."""

from dataclasses import dataclass

from vlm.schema import Caption, Modality, Split


@dataclass(frozen=True)
class SourceRow:
    """One image of a source with what the source says about it.

    row : its position in the source, from 0; readers count every row of their index files, so that a rejected or
        left-out row does not move the others. image : posix path below the image root. slice_index : of a NIfTI or
        multi-slice DICOM image along its slowest file axis; None: the only or the middle slice. labels, uncertain,
        absent : findings that are, may be, are not there; none of the three means that nothing is known.
    """

    row: int
    image: str
    modality: Modality
    captions: tuple[Caption, ...] = ()
    labels: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    anatomy: str | None = None
    view: str | None = None
    patient: str | None = None
    article: str | None = None
    split: Split | None = None
    source_id: str = ""
    slice_index: int | None = None


@dataclass(frozen=True)
class Reject:
    """A row that cannot be used: one line of rejects.jsonl. reason : for a person, one line."""

    source: str
    row: int
    image: str
    reason: str


@dataclass(frozen=True)
class LabelSet:
    """All that a caption made from labels may say. Tuples are in the order in which they are to be named."""

    modality: Modality
    present: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    anatomy: str | None = None
    view: str | None = None
