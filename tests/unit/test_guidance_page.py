"""docs/lexicon.md is what its script writes: numbers, sentences and fields on the page are true."""

import sys
import tomllib
from pathlib import Path

from autoseg.guidance.lexicon import build_lexicon, load_lexicon
from autoseg.guidance.reading import shipped_tissues, structures_of
from autoseg.guidance.records import LexiconFile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import print_lexicon  # noqa: E402

PAGE = (ROOT / "docs" / "lexicon.md").read_text(encoding="utf-8")


def test_the_page_is_up_to_date():
    assert print_lexicon.document() == PAGE, "write it anew: python benchmarks/print_lexicon.py"


def test_the_numbers_of_the_regions_add_up():
    rows = [line.split("|")[1:4] for line in PAGE.splitlines() if line.startswith("| ") and "**" not in line][1:]
    written, entries = sum(int(row[1]) for row in rows), sum(int(row[2]) for row in rows)
    assert f"| **all** | **{written}** | **{entries}** |" in PAGE
    assert entries == len(load_lexicon().entries)


def test_the_entry_on_the_page_can_be_read():
    text = PAGE.split("```toml\n")[1].split("```")[0]
    file = LexiconFile.model_validate(tomllib.loads(text))
    lexicon = build_lexicon(structures_of(file, shipped_tissues(), Path("page.toml")))
    assert lexicon.find("lk").neighbors == ("spleen", "left adrenal gland")
    assert lexicon.find("RK").neighbors == ("right adrenal gland", "colon")
    assert set(lexicon.entries) == {"kidney", "left kidney", "right kidney"}
