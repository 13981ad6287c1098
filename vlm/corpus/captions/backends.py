"""Who writes captions from labels: the grammar, a model behind an endpoint, or one on this machine."""

from pathlib import Path
from typing import Protocol

from autoseg.errors import UserError, all_of
from vlm.corpus.captions.cache import CachedWriter
from vlm.corpus.captions.grammar import grammar_captions
from vlm.corpus.captions.posting import Patience
from vlm.corpus.captions.tables import LabelTable
from vlm.corpus.options import CaptionBackend
from vlm.corpus.rows import LabelSet
from vlm.schema import Caption

GRAMMAR = "grammar 1"
"""Origin of the grammar's captions; the number is raised when its sentences change."""


class CaptionWriter(Protocol):
    """Turns labels into sentences. name : what makes them, the same in captions' origins."""

    name: str

    def write(self, labels: LabelSet, table: LabelTable | None, count: int) -> tuple[Caption, ...]:
        """`count` captions that passed the checks. UserError where they cannot be had."""


class GrammarWriter:
    """The deterministic grammar: offline, no model."""

    name = GRAMMAR

    def write(self, labels: LabelSet, table: LabelTable | None, count: int) -> tuple[Caption, ...]:
        """`count` captions of kind "template"."""
        return tuple(Caption(text=text, kind="template", origin=GRAMMAR)
                     for text in grammar_captions(labels, table, count))


def make_writer(
    kind: CaptionBackend,
    cache_file: Path,
    *,
    endpoint: str | None = None,
    model: str | None = None,
    key_file: Path | None = None,
    timeout_seconds: float = 120.0,
) -> CaptionWriter:
    """The writer that a person chose on the command line; captions of a model are cached in `cache_file`.

    Parameters
    ----------
    endpoint, key_file : of "endpoint" only. model : a name at the endpoint, or the folder of a local model.
    timeout_seconds : of silence of an endpoint, after which it is asked again.

    Raises
    ------
    UserError : all options that are missing, or have no effect with this kind, together; an endpoint that is no
        http(s) URL; a key file or model folder that is missing.
    """
    if problems := _misfits(kind, endpoint, model, key_file):
        raise all_of(problems, f"--captions {kind} does not fit the other options:", "Correct the command line.")
    if timeout_seconds <= 0:
        raise UserError(f"the endpoint's time-out is {timeout_seconds:g} s; it must be positive.")
    if kind == "endpoint" and endpoint is not None and model is not None:
        from vlm.corpus.captions.endpoint import EndpointWriter

        patience = Patience(timeout_seconds=timeout_seconds)
        return CachedWriter(EndpointWriter(endpoint, model, key_file, patience=patience), cache_file)
    if kind == "local" and model is not None:
        from vlm.corpus.captions.local_model import LocalModelWriter

        return CachedWriter(LocalModelWriter(Path(model)), cache_file)
    return GrammarWriter()


def _misfits(kind: CaptionBackend, endpoint: str | None, model: str | None, key_file: Path | None) -> list[str]:
    problems = []
    if kind == "endpoint" and endpoint is None:
        problems.append("--endpoint is missing: the URL of an OpenAI-compatible server, http://localhost:8000/v1")
    if kind != "endpoint":
        problems += [f"{option} has no effect: it belongs to --captions endpoint"
                     for option, value in {"--endpoint": endpoint, "--key-file": key_file}.items() if value is not None]
    if kind == "grammar" and model is not None:
        problems.append("--caption-model has no effect: the grammar needs no model")
    if kind != "grammar" and model is None:
        what = "the model's name at the endpoint" if kind == "endpoint" else "the folder of a transformers model"
        problems.append(f"--caption-model is missing: {what}")
    return problems
