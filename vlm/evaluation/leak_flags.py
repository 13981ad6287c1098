"""What a corpus knows of the sets that a model trained on it is measured on."""

import re
from collections.abc import Sequence
from pathlib import Path

from autoseg.progress import progress
from autoseg.records import read_record
from vlm.corpus.leaks import LeakReport
from vlm.corpus.stored_pairs import read_manifest, require_shards, shard_path
from vlm.evaluation.corpus_sets import pair_records
from vlm.evaluation.records import LeakFlag
from vlm.evaluation.suite_files import SetPlan
from vlm.schema import CorpusManifest

UNCHECKED = LeakFlag(status="not checked", said="Give --corpus to see what the training images share with this set.")
NOT_AT_HAND = "not on this disk"
_ENDING = re.compile(r"[\s.;:,!?]+$")


def leak_flags(plans: Sequence[SetPlan], corpus: Path | None) -> dict[str, LeakFlag]:
    """A flag for every set. UserError: `corpus` is none, or its shards or leaks.json are missing or damaged."""
    if corpus is None:
        return dict.fromkeys((plan.name for plan in plans), UNCHECKED)
    manifest = read_manifest(corpus)
    require_shards(corpus, manifest)
    leaks = read_record(LeakReport, corpus / "leaks.json", "It is written by `vlm build-corpus`.")
    captions = _captions_of(plans, corpus, manifest)
    return {plan.name: _flag(plan, manifest, leaks, captions) for plan in plans}


def plain(sentence: str) -> str:
    """A sentence without its case, outer spaces and last punctuation: what makes two of them the same."""
    return _ENDING.sub("", " ".join(sentence.split()).casefold())


def _flag(plan: SetPlan, manifest: CorpusManifest, leaks: LeakReport, captions: frozenset[str]) -> LeakFlag:
    known = tuple(sentence for sentences in plan.prompts.values() for sentence in sentences
                  if plain(sentence) in captions)
    if plan.source is not None and plan.source in manifest.sources:
        pairs = sum(shard.pairs for shard in manifest.shards if shard.source == plan.source and shard.split == "train")
        return LeakFlag(status="same source", prompts_in_corpus=known,
                        said=f"{pairs:,} training pairs are of this source; its test split is kept out of training.")
    if plan.name in leaks.unresolved:
        said = ", ".join(leaks.unresolved[plan.name])
        return LeakFlag(status="unresolved", prompts_in_corpus=known,
                        said=f"Training images of {said} are known to hold images of this set, and could not be "
                             "searched when the corpus was built: the result may be too good.")
    report = leaks.sets.get(plan.name)
    if report is None or report.checked == NOT_AT_HAND:
        return LeakFlag(status="not checked", prompts_in_corpus=known,
                        said="The set was not at hand when the corpus was built, and no overlap is known.")
    if report.dropped:
        found = ", ".join(f"{source}: {sum(ways.values()):,}" for source, ways in report.found.items())
        return LeakFlag(status="removed", prompts_in_corpus=known,
                        said=f"{report.dropped:,} training images were the set's and were left out ({found}).")
    return LeakFlag(status="none known", prompts_in_corpus=known,
                    said=f"No training image was found to be the set's ({report.checked}).")


def _captions_of(plans: Sequence[SetPlan], corpus: Path, manifest: CorpusManifest) -> frozenset[str]:
    """Those of the plans' sentences that are a training caption, as `plain` writes them."""
    wanted = {plain(sentence) for plan in plans for sentences in plan.prompts.values() for sentence in sentences}
    found: set[str] = set()
    shards = [shard for shard in manifest.shards if shard.split == "train"]
    with progress("prompts among captions", len(shards), "shards") as bar:
        for shard in shards:
            for _, record in pair_records(shard_path(corpus, shard.file)):
                found |= wanted & {plain(caption.text) for caption in record.captions}
            bar.advance()
    return frozenset(found)
