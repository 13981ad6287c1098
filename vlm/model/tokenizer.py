"""Words to numbers: the tokenizer of a text tower, padded no further than needed, checked when it is loaded."""

import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ftfy
import torch
from jaxtyping import Int64
from torch import Tensor

from autoseg.errors import UserError

Padding = Literal["longest", "full"]

KNOWN_WORDS = (
    "the image shows a left and right of with in no", "liver kidney spleen heart lung brain bladder",
    "scan tumor normal chest abdomen pelvis artery vein bone", "The CT Image MRI",
)
"""Any tokenizer of English text knows these words, whole or in pieces. The last ones are unknown where a vocabulary of
small letters lost the setting that makes letters small."""


class EncodedTexts(NamedTuple):
    """ids : padded at the end. lengths : tokens of each text without padding. truncated : texts that were cut."""

    ids: Int64[Tensor, "text token"]
    lengths: Int64[Tensor, " text"]
    truncated: int


class Tokenizer:
    """Encodes texts for a text tower: cleaned as open_clip cleans them, cut at the context, padded at the end.

    Parameters
    ----------
    folder : holds tokenizer.json, or vocab.txt and config.json.
    context_length : tokens; longer texts are cut, and counted.

    Raises
    ------
    UserError : no tokenizer is there, it has no token for padding, or it maps words of English to "unknown".
    """

    def __init__(self, folder: Path, context_length: int) -> None:
        self.folder, self.context_length = folder, context_length
        self._tokenizer = _load(folder)
        if self._tokenizer.pad_token_id is None:
            raise UserError(f"{folder}: the tokenizer has no token for padding.\n"
                            "Give the tokenizer that belongs to the text tower.")
        self.pad_id, self.size = int(self._tokenizer.pad_token_id), len(self._tokenizer)
        _refuse_unknown(self._tokenizer, folder)

    def encode(
        self, texts: Sequence[str], padding: Padding = "longest", multiple_of: int = 8
    ) -> EncodedTexts:
        """Token numbers of texts.

        Parameters
        ----------
        padding : longest: up to the longest text, rounded up to `multiple_of` tokens; full: up to the context.
            Both give the same embeddings, since padding is masked; the first is several times faster.
        """
        if not texts:
            raise ValueError("no text to encode")
        batch = self._tokenizer([clean(text) for text in texts], truncation=True, max_length=self.context_length)
        lengths = torch.tensor([len(ids) for ids in batch["input_ids"]])
        width = self.context_length
        if padding == "longest":
            width = min(width, -(-int(lengths.max()) // multiple_of) * multiple_of)
        ids = torch.full((len(texts), width), self.pad_id)
        for row, numbers in zip(ids, batch["input_ids"], strict=True):
            row[: len(numbers)] = torch.tensor(numbers)
        return EncodedTexts(ids, lengths, sum(bool(one.overflowing) for one in batch.encodings))

    def vocabulary_sha256(self) -> str:
        """SHA-256 of all words and their numbers."""
        words = json.dumps(sorted(self._tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])))
        return hashlib.sha256(words.encode()).hexdigest()


def clean(text: str) -> str:
    """Mends wrongly decoded characters, resolves HTML entities (twice), and leaves single spaces; as open_clip does."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; the tokenizer of a text tower was expected there.")
    try:
        # By folder, not by class: transformers 5 ignores `BertTokenizerFast(vocab_file=…)` and knows no word then.
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # classes of four libraries, without a common one
        raise UserError(f"{folder} holds no tokenizer that can be loaded: {type(error).__name__}: {str(error)[:300]}\n"
                        "Put the text tower's tokenizer files (tokenizer.json, or vocab.txt and config.json) there."
                        ) from None
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: the tokenizer {type(tokenizer).__name__} is not one of the `tokenizers` library.\n"
                        "Save it with a tokenizer.json (`save_pretrained` of a fast tokenizer writes it).")
    return tokenizer


def _refuse_unknown(tokenizer: Any, folder: Path) -> None:
    words = " ".join(KNOWN_WORDS).split()
    rows = tokenizer(words, add_special_tokens=False)["input_ids"]
    unknown = [word for word, ids in zip(words, rows, strict=True) if not ids or tokenizer.unk_token_id in ids]
    if unknown:
        shown = ", ".join(unknown[:8]) + (", …" if len(unknown) > 8 else "")
        raise UserError(
            f"{folder}: the tokenizer maps {len(unknown)} of {len(words)} plain English words to \"unknown\": "
            f"{shown}.\nWith it all texts would look alike: its vocabulary was not read. Check that vocab.txt or "
            "tokenizer.json belongs to this text tower and was copied completely.")
