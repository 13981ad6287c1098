"""Sets read out of a built corpus: the pairs of a source, by split; no image is read before it is needed."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from autoseg.errors import UserError
from vlm.corpus.image_files import ImageFile
from vlm.corpus.stored_pairs import FORMS, REMEDY, shard_path
from vlm.evaluation.image_sets import ImageSet, ListedImage, collect, group_in
from vlm.evaluation.suite_files import SetPlan
from vlm.schema import CorpusManifest, PairRecord

WRITTEN_KINDS = ("native", "report", "refined")
"""Captions that somebody wrote for an image. Those made from labels are the same for many images."""


def is_corpus(folder: Path) -> bool:
    """Whether a folder is a built corpus."""
    return (folder / "manifest.json").is_file() and (folder / "shards").is_dir()


def read_corpus_set(plan: SetPlan, corpus: Path, manifest: CorpusManifest) -> ImageSet | None:
    """The test pairs of the plan's source, and its training pairs for a linear probe; None where there are none.

    UserError: a shard is damaged.
    """
    splits = ("test", "train") if plan.train else ("test",)
    images = []
    for shard in manifest.shards:
        if shard.source != plan.source or shard.split not in splits:
            continue
        path = shard_path(corpus, shard.file)
        place = path.relative_to(corpus).as_posix()
        images += [ListedImage(ImageFile(corpus, f"{place}!{member}"), _label(plan, record), _group(plan, record),
                               _caption(record) if plan.captions else "", shard.split == "train")
                   for member, record in pair_records(path)]
    return collect(plan, images) if any(not image.is_train for image in images) else None


def pair_records(shard: Path) -> Iterator[tuple[str, PairRecord]]:
    """(name of the image's member, description) of every pair, in order; images are skipped, not read."""
    try:
        with tarfile.open(shard, "r:") as tar:
            image = ""
            for member in tar:
                suffix = PurePosixPath(member.name).suffix.removeprefix(".")
                if suffix in FORMS:
                    image = member.name
                elif suffix == "json":
                    content = tar.extractfile(member)
                    yield image, PairRecord.model_validate(json.loads(content.read() if content else b""))
    except (OSError, tarfile.TarError, EOFError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{shard} is damaged: {reason}.\n{REMEDY}") from None


def _label(plan: SetPlan, record: PairRecord) -> str:
    """The only class among the pair's labels; "" where there is none or more than one."""
    if plan.listing.label == "modality":
        return record.modality if record.modality in plan.classes else ""
    found = [label for label in record.labels if label in plan.classes]
    return found[0] if len(found) == 1 else ""


def _group(plan: SetPlan, record: PairRecord) -> str:
    """By the set's own rule, since a corpus only knows the patients that its source cards name; by these where the rule
    reads a column that a corpus does not keep."""
    kept = {None: record.file, "file": record.file, plan.listing.image: record.file, "source_id": record.source_id}
    if plan.group is None or plan.group.column not in kept:
        return record.patient or ""
    return group_in(plan.group, kept[plan.group.column])


def _caption(record: PairRecord) -> str:
    return next((caption.text for caption in record.captions if caption.kind in WRITTEN_KINDS), "")
