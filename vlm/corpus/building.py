"""Building a corpus, step by step: survey, inspect, decide, caption, pack, list. Each step goes on where it ended."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from autoseg import __version__
from autoseg.errors import UserError, all_of
from autoseg.progress import progress
from autoseg.records import content_hash, read_json, storage_error, write_json
from vlm.corpus.assembling import decide_all, gather_facts, plan_shards
from vlm.corpus.captioning import asked_of, write_captions
from vlm.corpus.captions.backends import CaptionWriter
from vlm.corpus.evaluation_sets import EvaluationCard, EvaluationSet, hash_evaluation_set, load_evaluation_cards
from vlm.corpus.facts import Fate
from vlm.corpus.inspection import Chunk, Inspection, chunks_of, inspect_chunk
from vlm.corpus.lists import Decided, write_lists
from vlm.corpus.options import BuildOptions
from vlm.corpus.pairing import load_thresholds
from vlm.corpus.readers import read_source
from vlm.corpus.shards import Packing, ShardJob, rows_of, write_shard
from vlm.corpus.sourcing import PresentSource, Survey, survey_sources
from vlm.corpus.stored_pairs import read_manifest, shard_file_problems
from vlm.corpus.workers import stream_map
from vlm.schema import CorpusManifest

try:
    import fcntl
except ImportError:  # Windows: two builds must not write to one folder at a time
    fcntl = None  # type: ignore[assignment]

BUILD = ".build"
"""Folder of what a build needs to go on; it is removed when the corpus is done."""


@dataclass(frozen=True)
class BuildJob:
    """A corpus to be built.

    sources : in order of preference. writer : of captions from labels. evaluation_data : folder of evaluation sets, or
    None: nothing is looked for but what the sources themselves call "test".
    """

    sources: Sequence[PresentSource]
    options: BuildOptions
    writer: CaptionWriter
    evaluation_data: Path | None
    workers: int


@dataclass(frozen=True)
class _Place:
    """Folders of a build below the corpus."""

    corpus: Path

    @property
    def build(self) -> Path:
        return self.corpus / BUILD

    @property
    def shards(self) -> Path:
        return self.corpus / "shards"

    def chunks(self, source: str) -> Path:
        return self.build / "rows" / source


def build_corpus(job: BuildJob, corpus: Path) -> tuple[CorpusManifest, bool]:
    """Write the corpus into the folder `corpus`, or go on with it; (its manifest, whether it was there already).

    Raises
    ------
    UserError : sources that cannot be read; a folder that holds something else, or a corpus made of something else;
        another build at work in it; no pair is left; the disk is full. What is finished stays and is not done again.
    """
    place = _Place(corpus)
    refuse_strange_folder(corpus)
    surveys = survey_sources(job.sources)
    cards = load_evaluation_cards()
    evaluation = hash_evaluation_sets(cards, job.evaluation_data, job.workers)
    ingredients = _ingredients(job, surveys, evaluation)
    recipe = content_hash(ingredients)
    if (corpus / "manifest.json").exists():
        return _require_same(corpus, recipe), True
    with _at_work(place, ingredients):
        of_sources = [surveys[source.card.name] for source in job.sources]
        folders = [place.chunks(source.card.name) for source in job.sources]
        _inspect_all(job, of_sources, folders)
        facts, table = gather_facts(of_sources, folders, place.build / "facts.npy")
        names = [source.card.name for source in job.sources]
        decisions = decide_all(facts, table, names, evaluation, load_thresholds(), job.options.near_duplicates)
        if not (decisions.fate == Fate.KEPT).any():
            raise _nothing_left(job, of_sources, place)
        written = None if job.options.captions == "grammar" else place.build / "captions.jsonl"
        packings = [
            Packing(source, survey.labels, job.options, folder, written, place.shards, place.build / "shards")
            for source, survey, folder in zip(job.sources, of_sources, folders, strict=True)
        ]
        jobs = tuple(plan_shards(facts, decisions, table, packings))
        if written is not None:
            _caption_all(job, jobs, written)
        _pack_all(jobs, job.workers)
        decided = Decided(job.sources, of_sources, facts, table, decisions, cards, evaluation)
        manifest = write_lists(decided, jobs, job.options, recipe, corpus)
    shutil.rmtree(place.build, ignore_errors=True)
    return manifest, False


def hash_evaluation_sets(
    cards: Mapping[str, EvaluationCard], data: Path | None, workers: int
) -> tuple[EvaluationSet, ...]:
    """What is known of the evaluation sets below `data`; sets of which nothing is there are left out."""
    if data is None:
        return ()
    if not data.is_dir():
        raise UserError(f"--evaluation-data {data} is no folder. Name the folder below which the evaluation sets lie.")
    hashed = (hash_evaluation_set(card, data / card.folder, workers) for card in cards.values())
    found = tuple(known for known in hashed if known.files or known.lists)
    if not found:
        raise UserError(f"{data} holds none of the {len(cards)} evaluation sets; for example {next(iter(cards))} was "
                        f"looked for in {data / next(iter(cards.values())).folder}.\nCorrect --evaluation-data.")
    return found


def _ingredients(job: BuildJob, surveys: Mapping[str, Survey], evaluation: Iterable[EvaluationSet]) -> dict[str, Any]:
    """All that shapes a corpus; where it is equal, the corpus has the same bytes."""
    findings = (resources.files("presets") / "vlm" / "findings").iterdir()
    tables = {table.name: table.read_text(encoding="utf-8") for table in findings if table.name.endswith(".toml")}
    return {
        "version": __version__, "options": asdict(job.options), "captions": job.writer.name,
        "sources": [(name, surveys[name].fingerprint) for name in (source.card.name for source in job.sources)],
        "thresholds": load_thresholds(), "label tables": content_hash(tables),
        "evaluation sets": {known.name: content_hash([
            known.sha256.tolist(), known.files, known.unreadable, known.lists, known.patients.tolist(),
            sorted((source, sorted(images)) for source, images in known.images.items())]) for known in evaluation},
    }


def refuse_strange_folder(corpus: Path) -> None:
    """UserError where the folder holds files and no corpus, nor the beginning of one."""
    if corpus.exists() and not corpus.is_dir():
        raise UserError(f"{corpus} is a file; a folder for the corpus was expected.")
    known = {"manifest.json", BUILD, "run.json"}
    if corpus.is_dir() and (held := {path.name for path in corpus.iterdir()}) and not held & known:
        raise UserError(f"{corpus} holds other files and no corpus. Choose a folder that is new or empty.")


def _require_same(corpus: Path, recipe: str) -> CorpusManifest:
    manifest = read_manifest(corpus)
    if manifest.recipe != recipe:
        raise UserError(f"{corpus} holds a corpus that was made of something else: other sources, options or index "
                        "files, or by another version.\nBuild into another folder, or delete this one first.")
    if problems := shard_file_problems(corpus, manifest):
        raise all_of(problems, f"{corpus} was finished, but its shards are no longer whole:",
                     "Delete the folder and build it again.")
    return manifest


@contextmanager
def _at_work(place: _Place, ingredients: dict[str, Any]) -> Iterator[None]:
    """Hold the build folder: made of these ingredients, and nobody else's meanwhile."""
    try:
        for folder in (place.build / "shards", place.shards):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (place.build / "lock").open("w")
    except OSError as error:
        raise storage_error(error, place.build) from error
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another `vlm build-corpus` is at work in {place.corpus}. Wait for it, or stop "
                                "it.") from None
        _require_same_ingredients(place, ingredients)
        for leftover in place.shards.glob(".*"):  # a kill leaves what was being written under a temporary name
            leftover.unlink()
        yield


def _require_same_ingredients(place: _Place, ingredients: dict[str, Any]) -> None:
    path = place.build / "recipe.json"
    content = {"recipe": content_hash(ingredients), **{name: content_hash(part) for name, part in ingredients.items()}}
    if not path.exists():
        write_json(content, path)
        return
    known = read_json(path)
    if known != content:
        before = known if isinstance(known, dict) else {}
        changed = [name for name in content if name != "recipe" and before.get(name) != content[name]]
        raise UserError(f"{place.corpus} holds a build that was begun with other {', '.join(changed)}.\n"
                        "Run the command as it was begun, build into another folder, or delete this one first.")


def _inspect_all(job: BuildJob, surveys: Sequence[Survey], folders: Sequence[Path]) -> None:
    """First pass: open and hash every image."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)

    def work() -> Iterator[tuple[Inspection, Chunk]]:
        for position, (source, survey, folder) in enumerate(zip(job.sources, surveys, folders, strict=True)):
            inspection = Inspection(source, position, job.options, survey.own_validation, folder)
            for chunk in chunks_of(read_source(source.card, source.layout, source.folder)):
                yield inspection, chunk

    with progress("inspect", sum(survey.rows for survey in surveys), "images") as bar:
        for count in stream_map(inspect_chunk, work(), job.workers):
            bar.advance(count)


def _caption_all(job: BuildJob, shards: Sequence[ShardJob], path: Path) -> None:
    """Have a model write captions for every label set of the pairs; a grammar's are made in the workers."""
    found = (asked_of(staged.row, shard.packing.source.card) for shard in shards for staged in rows_of(shard))
    asked = (one for one in found if one is not None)
    write_captions(asked, job.writer, job.options.captions_per_label_set, path)


def _pack_all(jobs: Sequence[ShardJob], workers: int) -> None:
    """Second pass: write the shards, the large ones first, so that no core waits for the last of them."""
    by_size = sorted(jobs, key=lambda job: -job.count)
    with progress("write shards", sum(job.count for job in jobs), "pairs") as bar:
        for count in stream_map(write_shard, by_size, workers):
            bar.advance(count)


def _nothing_left(job: BuildJob, surveys: Sequence[Survey], place: _Place) -> UserError:
    """The error that says why; the build's files go, so that the command begins anew when the images are mended."""
    reasons = [line for folder in sorted((place.build / "rows").glob("*/*.rejects.jsonl"))
               for line in folder.read_text(encoding="utf-8").split("\n") if line]
    shutil.rmtree(place.build, ignore_errors=True)
    with suppress(OSError):
        place.shards.rmdir()
    rows = sum(survey.rows for survey in surveys)
    told = ["{source}, row {row}, {image}: {reason}".format(**json.loads(line)) for line in reasons]
    told += ["the other images are images of evaluation sets"] * (len(told) < rows)
    return all_of(told, f"none of the {rows} rows can become a pair:", "Put the images where the card looks for them "
                  "(`vlm sources NAME --path DIR`), and run the command again.", shown=5)
