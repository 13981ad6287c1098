"""`vlm build-corpus`: images and what is said about them, from any sources, into shards to train from."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from autoseg.errors import UserError
from autoseg.output import write_json_object, write_stdout
from autoseg.progress import readable_seconds
from autoseg.recording import recorded
from vlm.corpus import building
from vlm.corpus.captions.backends import make_writer
from vlm.corpus.facts import SPLITS
from vlm.corpus.options import BuildOptions, CaptionBackend, CorpusPreset, read_preset
from vlm.corpus.registry import load_cards, with_own_cards
from vlm.corpus.sourcing import find_sources
from vlm.corpus.stats_tables import Table, format_table
from vlm.corpus.workers import all_cores
from vlm.schema import CorpusManifest

DEFAULT_SEED = 0
DEFAULT_PRESET = "mini"


def build_corpus(  # noqa: PLR0913 (a command's options)
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    data: Path,
    preset: str = DEFAULT_PRESET,
    sources: str | None = None,
    card: tuple[Path, ...] = (),
    available: Annotated[bool, Parameter(negative=())] = False,
    evaluation_data: Path | None = None,
    captions: CaptionBackend = "grammar",
    captions_per_label_set: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=50))] = 10,
    endpoint: str | None = None,
    caption_model: str | None = None,
    key_file: Path | None = None,
    caption_cache: Path | None = None,
    near_duplicates: bool = True,
    long_side: Annotated[int | None, Parameter(validator=validators.Number(gte=32))] = None,
    pairs_per_shard: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=100_000))] = 1000,
    workers: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    seed: int = DEFAULT_SEED,
    json: Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object on stdout.")] = False,
) -> int:
    """Build a corpus of image-text pairs: read, hash, deduplicate, split by patient, caption, and write shards.

    Run the same command again after a stop: it goes on where it ended, and gives the same bytes.

    Parameters
    ----------
    output
        Folder for the corpus: shards/*.tar, manifest.json, sizes.json, rejects.jsonl, duplicates.jsonl, leaks.json.
    data
        Folder below which the sources lie, each in the folder that its card names (`vlm sources --data DIR`).
    preset
        `mini` (open, small), `unimed` (13 parts), or a TOML file of your own.
    sources
        Names of sources, separated by commas, in order of preference, instead of the preset's.
    card
        TOML file with a source card of your own; may be given several times. It is built too.
    available
        Leave out the sources that are not complete below --data, instead of refusing.
    evaluation_data
        Folder below which evaluation sets lie: images that are equal or alike to one of theirs, listed by them, or of
        a patient of theirs are kept out, and leaks.json says what was found.
    captions
        What makes sentences of labels: the grammar, an OpenAI-compatible endpoint, or a local transformers model.
    captions_per_label_set
        Sentences for each set of labels.
    endpoint
        URL of the server, with --captions endpoint.
    caption_model
        The model's name at the endpoint, or the folder of a local model.
    key_file
        File with the endpoint's key.
    caption_cache
        File that keeps a model's captions, also for other builds; by default captions_cache.jsonl in the output folder.
    near_duplicates
        Whether images that look alike are paired once (equal files always are).
    long_side
        Make larger images smaller, to so many pixels; by default as the preset says.
    pairs_per_shard
        Pairs in a tar.
    workers
        Processes; by default one per core.
    seed
        Of the split of patients.
    """
    building.refuse_strange_folder(output)
    chosen = read_preset(preset)
    options = _options(chosen, seed, long_side, pairs_per_shard, captions, captions_per_label_set, near_duplicates)
    known = load_cards()
    cards = with_own_cards(known, card)
    own = tuple(name for name in cards if name not in known)
    named = _named(sources) if sources is not None else chosen.sources
    writer = make_writer(captions, caption_cache or output / "captions_cache.jsonl", endpoint=endpoint,
                         model=caption_model, key_file=key_file)
    if not data.is_dir():
        raise UserError(f"--data {data} is no folder. Name the folder below which the sources lie.")
    with recorded("build-corpus", output, seed) as recording:
        start = time.perf_counter()
        found, missing = find_sources((*named, *(name for name in own if name not in named)), cards, data, available)
        job = building.BuildJob(found, options, writer, evaluation_data, workers or all_cores())
        manifest, was_there = building.build_corpus(job, output)
        seconds = time.perf_counter() - start
        recording.inputs |= {"data": str(data.resolve()), "recipe": manifest.recipe}
        recording.results |= {"pairs": _pairs(manifest), "shards": len(manifest.shards), "missing": ", ".join(missing)}
    if json:
        write_json_object({
            "corpus": str(output), "recipe": manifest.recipe, "already_there": was_there, "missing": missing,
            "seconds": round(seconds, 1), "pairs": _pairs(manifest), "shards": len(manifest.shards),
            "counts": manifest.counts,
            "sources": {name: count.model_dump(exclude={"labels"}) for name, count in manifest.sources.items()},
        })
    else:
        write_stdout(_report(manifest, output, missing, was_there, seconds))
    return 0


def _options(  # noqa: PLR0913 (one option each)
    preset: CorpusPreset, seed: int, long_side: int | None, pairs_per_shard: int, captions: CaptionBackend,
    captions_per_label_set: int, near_duplicates: bool,
) -> BuildOptions:
    return BuildOptions(
        seed=seed, val_share=preset.val_share, test_share=preset.test_share,
        long_side=long_side if long_side is not None else preset.long_side, pairs_per_shard=pairs_per_shard,
        captions=captions, captions_per_label_set=captions_per_label_set, near_duplicates=near_duplicates)


def _named(sources: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in sources.split(",") if name.strip())
    if not names:
        raise UserError(f"--sources {sources!r} names no source. Give names separated by commas; `vlm sources` lists "
                        "them.")
    return names


def _pairs(manifest: CorpusManifest) -> int:
    return sum(shard.pairs for shard in manifest.shards)


def _report(
    manifest: CorpusManifest, output: Path, missing: tuple[str, ...], was_there: bool, seconds: float
) -> str:
    rows = [(modality, *(f"{splits.get(split, 0):,}" for split in SPLITS), f"{sum(splits.values()):,}")
            for modality, splits in manifest.counts.items()]
    fields = ("rows", "pairs", "rejected", "duplicates", "leaks", "left_out")
    of_sources = [(name, *(f"{getattr(count, field):,}" for field in fields))
                  for name, count in manifest.sources.items()]
    head = f"{output}: {_pairs(manifest):,} pairs in {len(manifest.shards):,} shards"
    head += ", built before: nothing had to be done." if was_there else f", {readable_seconds(seconds)}."
    left_out = [f"Not below --data, so left out: {', '.join(missing)}"] if missing else []
    return "\n\n".join([
        head, format_table(Table("Pairs per modality", ("", *SPLITS, "pairs"), tuple(rows))),
        format_table(Table("What became of the rows", ("source", *(field.replace("_", " ") for field in fields)),
                           tuple(of_sources))),
        *left_out, f"Next: vlm corpus-stats {output}    (tables, a contact sheet and caption lengths to look at)",
    ])
