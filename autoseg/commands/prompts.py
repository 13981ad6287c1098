"""`autoseg prompts`: what a dataset's labels mean in words; the sentences in a file that a person may edit."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from autoseg.commands.options import DEFAULT_RUN, JsonOption, RunOption
from autoseg.commands.plan import read_plan
from autoseg.commands.prompts_report import Report, Word, as_json, as_text, cosines_of
from autoseg.data.manifest import read_declarations
from autoseg.errors import all_of
from autoseg.guidance.banks import DEFAULT_BANK, names_in, of_other_sentences, open_bank
from autoseg.guidance.checking import check_labels, check_sentences, counted_problems, read_prompts
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.modalities import modality_of_channels
from autoseg.guidance.prompts import match_labels, sentences
from autoseg.guidance.records import Entry, PromptsFile
from autoseg.output import write_json_object, write_stdout
from autoseg.recording import recorded
from autoseg.records import write_record

FILE_NAME = "prompts.json"
Sentences = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Subject:
    """The labels that words are wanted for, without the background; `name` is the dataset's."""

    name: str
    labels: tuple[str, ...]
    channel_names: tuple[str, ...]


def prompts(
    *,
    run: RunOption = DEFAULT_RUN,
    dataset: Path | None = None,
    text_bank: str | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    overwrite: Annotated[
        bool, Parameter(negative=(), help="Write the lexicon's sentences over an edited file.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Show what a dataset's labels mean in words, and write their sentences into a file to edit.

    A file that is there already is shown and checked, not written.

    Parameters
    ----------
    dataset
        Folder with a dataset.json, for labels that have no plan yet; without it the labels are the run's.
    text_bank
        Whose vectors are compared: a folder that `vlm encode-labels` wrote, or a bank of autoseg's own by name.
    output
        The file of sentences; by default `prompts.json` in the run folder.
    """
    subject = _of_plan(run) if dataset is None else _of_dataset(dataset)
    file = output if output is not None else run / FILE_NAME
    with recorded("prompts", file.parent) as recording:
        bank = open_bank(text_bank)
        entries, problems = match_labels(subject.labels, load_lexicon(), modality_of_channels(subject.channel_names),
                                         subject.name)
        written = overwrite or not file.exists()
        if written:
            write_record(PromptsFile(_by_lexicon(subject.labels, entries)), file)
        given = read_prompts(file)
        warnings = _check(given, subject, entries, problems, file)
        matched = names_in(bank, subject.labels, subject.name, subject.channel_names)
        missing = tuple(label for label in subject.labels if label not in matched)
        stale = tuple(of_other_sentences(bank, matched, given))
        words = tuple(Word(label, entries.get(label), given[label], given[label] != _lexicons(entries.get(label)))
                      for label in subject.labels)
        report = Report(
            dataset=subject.name, file=file, written=written, words=words, warnings=warnings,
            bank=text_bank or DEFAULT_BANK, tower=bank.record.tower.name, missing=missing, stale=stale,
            cosines=cosines_of(bank, matched, entries), next=_next(run, file, text_bank, bool(missing or stale)),
        )
        recording.inputs |= {"labels": str(dataset or run), "bank": bank.record.sha256}
        recording.results |= {"labels": len(words), "own": sum(word.is_own for word in words),
                              "not_in_bank": len(missing) + len(stale)}
    if json:
        write_json_object(as_json(report))
    else:
        write_stdout(as_text(report))
    return 0


def _of_plan(run: Path) -> Subject:
    plan = read_plan(run)
    return Subject(plan.name, tuple(plan.foreground), plan.channel_names)


def _of_dataset(folder: Path) -> Subject:
    declared = read_declarations(folder)
    if declared.problems:
        raise all_of(declared.problems, f"{folder} cannot name the labels:", "Correct dataset.json.")
    return Subject(declared.name, tuple(declared.labelled.foreground), declared.channel_names)


def _by_lexicon(labels: Sequence[str], entries: Mapping[str, Entry]) -> Sentences:
    """The lexicon's sentences; none for labels that it does not know, where a person writes some."""
    return {label: _lexicons(entries.get(label)) for label in labels}


def _lexicons(entry: Entry | None) -> tuple[str, ...]:
    return () if entry is None else sentences(entry)


def _check(
    given: Mapping[str, Sequence[str]], subject: Subject, entries: Mapping[str, Entry], problems: Mapping[str, str],
    file: Path,
) -> tuple[str, ...]:
    """Warnings about a file of sentences; UserError with everything that keeps it from being used."""
    silent = [label for label, text in problems.items() if label in given and not given[label]]
    findings = check_sentences({label: texts for label, texts in given.items() if label not in silent}, entries)
    errors = [problems[label].replace("\n", "\n    ") for label in silent]
    errors += [*check_labels(tuple(given), subject.labels), *findings.errors]
    if errors:
        words = ("" if not silent else "\nA label can also have sentences of your own: "
                 f"{', '.join(map(repr, silent))} {'has' if len(silent) == 1 else 'have'} an empty list in that file. "
                 "Write at least one sentence there.")
        raise all_of(errors, counted_problems(file, errors),
                     "Correct dataset.json or this file, then run `autoseg prompts` again; --overwrite writes the "
                     f"lexicon's sentences anew.{words}")
    return findings.warnings


def _next(run: Path, file: Path, text_bank: str | None, unfit: bool) -> tuple[str, ...]:
    """The commands that lead to a training with these words."""
    own = [] if run == DEFAULT_RUN else ["--run", str(run)]
    train = ["autoseg", "train", *own, "--text-guided"]
    if not unfit:
        return (shlex.join([*train, *([] if text_bank is None else ["--text-bank", text_bank])]),)
    bank = file.parent / "text_bank"
    encode = ["vlm", "encode-labels", "--lexicon", "--prompts", str(file), "--tower", "TOWER", "-o", str(bank)]
    return (shlex.join(encode), shlex.join([*train, "--text-bank", str(bank)]))
