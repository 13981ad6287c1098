"""Every file format of the vision-language side: source cards, pairs inside shards, a corpus's manifest."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from autoseg.records import Record

Modality = Literal["X-ray", "CT", "MRI", "Ultrasound", "Pathology", "Fundus", "mixed"]
"""Kind of device; `mixed` where a source does not say it per image (figures of publications)."""

Split = Literal["train", "val", "test"]
CaptionKind = Literal["native", "report", "refined", "template", "generated"]
"""native: came with the image; report: free text of a radiologist; refined: a native one that somebody rewrote;
template: made from labels by a grammar or found in a published table; generated: made from labels by a model."""

Access = Literal["open", "request", "credentialed", "unavailable"]
ReaderName = Literal[
    "image_folders", "table", "unimed_shards", "unimed_csv", "caption_lists", "openi", "llava_med_alignment",
    "llava_med_instruct", "retina_captions", "den", "openi_xml", "mimic_cxr", "chexpert", "radimagenet", "roco",
]

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Caption(Record):
    """One sentence (or report) about an image, and where it comes from.

    origin : "column caption", "grammar 1", "endpoint gpt-x", "local NAME", "marker _chexpert_": enough to find the
        text's maker again.
    """

    text: Annotated[str, Field(min_length=1)]
    kind: CaptionKind
    origin: str


class Layout(Record):
    """One way in which a source lies on a disk: which reader, which files, which columns.

    name : e.g. "published" (the source's own files) or "unimed" (the annotation files that UniMed prepared).
    index : files with one row per image, relative to the source's folder (compressed by gzip where they end in .gz).
    image_root : folder of the images, relative to the source's folder.
    image_suffix : put behind what the image column says (".jpg" where the column holds ids).
    columns : role → column name, or position from 0 where the reader goes by position. Roles of `table`: image,
        slice, label, labels, caption, report, patient, article, split, modality, anatomy, view, id.
    label_separator : splits the column `labels`.
    findings : columns that hold 1 (present), 0 (absent), -1 (uncertain) or nothing.
    where : column → value; other rows are left out, and are no rejects.
    patient_pattern, article_pattern : regular expressions with one group, searched in the column of that role, or in
        the image's path where no such column is named. A row without a match is its own patient.
    splits : value of the split column → train, val, test, or "" (left out).
    split : of all rows, where there is no split column. None: split by patient when the corpus is built.
    label_pattern : a regular expression with one group, searched in the column `label`, or in the image's path where no
        such column is named; what the group holds is the label. `image_folders` takes the folder's name without it.
    image_pattern : `image_folders` leaves out files in whose path below `image_root` it is not found (masks).
    rename : label in the file → label in the label table; "" drops the label, and a row that says
        nothing else is left out.
    text_root : folder of the report files, where reports are files.
    caption_prefix : put before each caption ("The fundus image of ").
    """

    name: Slug
    reader: ReaderName
    index: tuple[str, ...] = ()
    image_root: str = "."
    image_suffix: str = ""
    delimiter: str = ","
    columns: dict[str, str | int] = {}
    label_separator: str | None = None
    findings: tuple[str, ...] = ()
    where: dict[str, str] = {}
    patient_pattern: str | None = None
    article_pattern: str | None = None
    label_pattern: str | None = None
    image_pattern: str | None = None
    splits: dict[str, Split | Literal[""]] = {}
    split: Split | None = None
    rename: dict[str, str] = {}
    text_root: str | None = None
    caption_prefix: str = ""

    @field_validator("patient_pattern", "article_pattern", "label_pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"{pattern!r} has {groups} groups; exactly one was expected")
        return pattern

    @field_validator("image_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern


class Overlap(Record):
    """Images of an evaluation set that are known to be in a source.

    evaluation : the set's name. said : why we know. ids : how its ids are found in this source: "patient" (a list of
        patient ids), "image" (a list of image names), or None (only hashes can find them).
    """

    evaluation: str
    said: str
    ids: Literal["patient", "image"] | None = None


class SourceCard(Record):
    """presets/vlm/sources/<name>.toml: one collection of images, what it is, how to get and how to read it.

    part : UniMed's webdataset part that it belongs to (None: not of UniMed). pairs_expected : published number.
    folder : its folder below --data. layouts : in order of preference; the first whose files are there is read.
    label_table : presets/vlm/findings/<label_table>.toml, which says how labels become sentences.
    anatomy, view : of every image, where the reader does not say it ("chest", "frontal").
    window : center and width for images in Hounsfield units that bring no window.
    """

    name: Slug
    title: str
    part: str | None = None
    modalities: tuple[Modality, ...]
    access: Access
    licence: str
    citation: str
    obtain: str
    folder: str
    pairs_expected: int | None = None
    layouts: Annotated[tuple[Layout, ...], Field(min_length=1)]
    label_table: str | None = None
    anatomy: str | None = None
    view: str | None = None
    window: tuple[float, float] | None = None
    overlaps: tuple[Overlap, ...] = ()
    remarks: str = ""

    @model_validator(mode="after")
    def _names_differ(self) -> "SourceCard":
        names = [layout.name for layout in self.layouts]
        if len(set(names)) < len(names):
            raise ValueError(f"two layouts of {self.name} have the same name: {', '.join(names)}")
        if not self.modalities:
            raise ValueError(f"{self.name} names no modality")
        return self


class PairRecord(Record):
    """The .json member of a pair in a shard.

    uid : "<source>_<row>", unique in a corpus. labels, uncertain, absent : findings that are, may be, are not there.
    label_ids : positions of `labels` in the manifest's list of this source's labels. patient : 16 hexadecimal digits
    that are equal for pairs of one patient of one source (no name, no number of the source's). file : path below the
    source's image root. sha256 : of the file as found (of the voxels for a slice of a volume). phash : 64
    hexadecimal digits. width, height : of the stored image, pixels. reencoded : the stored bytes are not the file's.
    """

    uid: str
    source: str
    modality: Modality
    split: Split
    captions: Annotated[tuple[Caption, ...], Field(min_length=1)]
    labels: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    label_ids: tuple[int, ...] = ()
    anatomy: str | None = None
    view: str | None = None
    patient: str | None = None
    article: str | None = None
    source_id: str = ""
    file: str
    slice_index: int | None = None
    sha256: Hex64
    phash: Hex64
    width: int
    height: int
    reencoded: bool


class ShardEntry(Record):
    """One tar of the manifest: its file, SHA-256, bytes and number of pairs."""

    file: str
    source: str
    split: Split
    sha256: Hex64
    size: int
    pairs: int


class SourceCount(Record):
    """What became of a source's rows: rows = pairs + rejected + duplicates + leaks + left_out.

    labels : distinct labels, sorted; a pair's `label_ids` point into it.
    """

    rows: int
    pairs: int
    rejected: int
    duplicates: int
    leaks: int
    left_out: int = 0
    layout: str
    labels: tuple[str, ...] = ()


class CorpusManifest(Record):
    """manifest.json: what the corpus holds and what it was made from; equal inputs give equal bytes.

    recipe : hash of all that shaped it (cards, options, index files, seed). counts : modality → split → pairs.
    """

    format: Literal[1] = 1
    version: str
    recipe: str
    seed: int
    options: dict[str, str | int | float | bool | None]
    sources: dict[str, SourceCount]
    counts: dict[str, dict[str, int]]
    shards: tuple[ShardEntry, ...]
