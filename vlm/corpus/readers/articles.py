"""Which publication an image comes from, where a file beside the index says it."""

import json
import re
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from autoseg.errors import UserError
from vlm.corpus.readers.opening import open_text
from vlm.corpus.readers.places import named_cells

_PMC = re.compile(r"PMC(\d{1,12})")
_LEADING_NUMBER = re.compile(r"^(\d{1,18})_")


class ArticleMap:
    """PubMed id, or number of an image → article in PubMed Central; 16 bytes per known number."""

    def __init__(self, pairs: Int64[np.ndarray, "known 2"]) -> None:
        order = np.argsort(pairs[:, 0], kind="stable")
        self._keys, self._articles = pairs[order, 0], pairs[order, 1]

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, key: int) -> str | None:
        """"PMC123", as PMC-OA's file names begin; None where the number is not known."""
        at = int(np.searchsorted(self._keys, key))
        if at == len(self._keys) or self._keys[at] != key:
            return None
        return f"PMC{self._articles[at]}"


def leading_number(name: str) -> int | None:
    """The PubMed id with which a name of LLaVA-Med begins ("28104940_F2"); None where there is none."""
    match = _LEADING_NUMBER.match(name)
    return int(match.group(1)) if match else None


def llava_articles(path: Path) -> ArticleMap:
    """From LLaVA-Med's list of image addresses: a JSON object per line, with `pair_id` and `pmc_tar_url`.

    The name of the archive is the article's id in PubMed Central. Lines without both are passed over.
    UserError: the file is absent, not UTF-8, or has a line that is not JSON.
    """
    known: dict[int, int] = {}  # one entry per article: some hundred thousand
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number} is not JSON: {error.msg}.\nDownload the file again.") from None
            if not isinstance(entry, dict):
                continue
            article = _PMC.search(str(entry.get("pmc_tar_url", "")))
            pubmed = leading_number(str(entry.get("pair_id", "")))
            if article and pubmed is not None:
                known[pubmed] = int(article.group(1))
    return _as_map(known)


def roco_articles(path: Path) -> ArticleMap:
    """From ROCOv2's license_information.csv: columns ID and PMCID. Keys are `roco_number` of the ids.

    UserError: the file is absent or lacks a column.
    """
    known: dict[int, int] = {}
    for cells in named_cells(path, ("ID", "PMCID"), ","):
        article = _PMC.search(cells[1]) or re.fullmatch(r"(\d{1,12})", cells[1].strip()) if cells else None
        if cells and article:
            known[roco_number(cells[0])] = int(article.group(1))
    return _as_map(known)


def roco_number(name: str) -> int:
    """A number for "ROCOv2_2023_train_000001" that differs between the splits; -1 where the name is of another form."""
    match = re.fullmatch(r"ROCOv2_\d{4}_(train|valid|test)_(\d{1,9})", name.strip())
    if match is None:
        return -1
    return int(match.group(2)) + ("train", "valid", "test").index(match.group(1)) * 10**9


def _as_map(known: dict[int, int]) -> ArticleMap:
    known.pop(-1, None)
    return ArticleMap(np.array(sorted(known.items()), np.int64).reshape(-1, 2))
