"""`vlm corpus-stats`: what a built corpus holds, in tables, pictures and a page."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from autoseg.errors import all_of
from autoseg.output import write_json_object, write_stdout
from autoseg.recording import recorded
from autoseg.records import replacing, storage_error, write_record
from vlm.corpus.examples import Example, read_images
from vlm.corpus.figures import draw_caption_lengths, draw_contact_sheet
from vlm.corpus.statistics import CorpusStatistics, measure_corpus
from vlm.corpus.stats_page import render_page
from vlm.corpus.stats_tables import all_tables, format_table, summary
from vlm.corpus.stored_pairs import REMEDY, read_manifest
from vlm.corpus.verification import find_problems
from vlm.corpus.workers import all_cores
from vlm.schema import CorpusManifest

SHARDS_WORTH_PROCESSES = 20
"""A shard of 1000 small images takes 0.2 s: with fewer, starting worker processes saves nothing that is noticed."""


def corpus_stats(
    corpus: Path,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    verify: Annotated[bool, Parameter(negative=())] = False,
    images_per_modality: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=90))] = 8,
    workers: int | None = None,
    json: Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object on stdout.")] = False,
) -> int:
    """Count what a corpus holds, and draw a contact sheet and caption lengths to look at.

    Parameters
    ----------
    corpus
        Folder that `vlm build-corpus` wrote.
    output
        Folder for stats.json, index.html (open it in a browser) and two PNGs; by default `stats` in the corpus.
    verify
        First check every shard's SHA-256, every pair and every image; problems are listed and nothing is written.
    images_per_modality
        On the contact sheet.
    workers
        Processes; by default one per core where there are many shards.
    """
    folder = output if output is not None else corpus / "stats"
    manifest = read_manifest(corpus)
    processes = workers if workers is not None else _usual_workers(manifest)
    with recorded("corpus-stats", folder, manifest.seed) as recording:
        _make_folder(folder)
        recording.inputs |= {"corpus": str(corpus.resolve()), "recipe": manifest.recipe}
        if verify:
            _require_whole(corpus, manifest, folder, processes)
        statistics, chosen = measure_corpus(
            corpus, manifest, folder, workers=processes, examples_per_modality=images_per_modality)
        _write_all(statistics, chosen, corpus, folder)
        total = statistics.total
        recording.results |= {"pairs": sum(total.pairs.values()), "captions": total.captions, "verified": verify}
    if json:
        write_json_object({"written": str(folder), "verified": verify, **statistics.model_dump(mode="json")})
    else:
        checked = ["Verified: every shard, pair and image is as the build wrote it."] if verify else []
        missing = [f"Not in {corpus}, so not counted: {', '.join(statistics.build.missing)}"] * bool(
            statistics.build.missing)
        tables = [format_table(table) for table in all_tables(statistics)]
        write_stdout("\n\n".join([f"{corpus}: {summary(statistics)}", *checked, *tables, *missing,
                                  f"Written: {folder / 'index.html'} (open it in a browser)"]))
    return 0


def _usual_workers(manifest: CorpusManifest) -> int:
    return all_cores() if len(manifest.shards) >= SHARDS_WORTH_PROCESSES else 1


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error


def _require_whole(corpus: Path, manifest: CorpusManifest, scratch: Path, workers: int) -> None:
    if problems := find_problems(corpus, manifest, scratch, workers):
        raise all_of(problems, f"{corpus} is not as the build wrote it; problems: {len(problems)}.", REMEDY)


def _write_all(
    statistics: CorpusStatistics, chosen: dict[str, tuple[Example, ...]], corpus: Path, folder: Path
) -> None:
    sheet, lengths, page = (folder / name for name in ("contact_sheet.png", "caption_lengths.png", "index.html"))
    title = f"Corpus {corpus.resolve().name}"
    draw_contact_sheet(chosen, read_images(corpus, chosen), f"{title}: {summary(statistics)}", sheet)
    draw_caption_lengths(statistics.caption_words, lengths)
    with replacing(page) as temporary:
        temporary.write_text(
            render_page(statistics, chosen, title, sheet.read_bytes(), lengths.read_bytes()), encoding="utf-8")
    write_record(statistics, folder / "stats.json")
