"""Write docs/lexicon.md: what the anatomy lexicon is, how an entry is added, and how many structures it has.

    python benchmarks/print_lexicon.py [--out docs/lexicon.md]
"""

import argparse
from collections import Counter
from pathlib import Path

from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.prompts import entries_of_labels, sentences
from autoseg.guidance.reading import shipped_structures

LABELS = ("kidney_left", "RK", "liver", "tumor")

HEAD = """# The anatomy lexicon

*Written by `python benchmarks/print_lexicon.py`; do not edit by hand.*

A segmenter that is guided by text needs sentences for its labels, and `dataset.json` has only names: `kidney_left`,
`RK`, `lt. kidney`. The lexicon (`presets/anatomy/*.toml`, our own writing) says what such a name means: where the
structure lies and on which side, its shape, what is next to it, and how it looks on each kind of device. Sentences
are made from that, the same ones on every machine. They hold what an image shows: no colors, tissue types under the
microscope, causes or symptoms. Left and right are the patient's.

## From a label to sentences

1. **Name.** `autoseg/guidance/label_names.py` takes a name apart: snake, camel and kebab case, British spellings,
   ordinals, the side in any usual form (`L_Kidney`, `kidney (R)`, `lt. lung`, `ctx-lh-insula`; in `vertebrae_L3`
   the L is no side).
2. **Entry.** The words are looked up among all names of all entries, in any order. A name that only says what kind
   of thing it is (`tumor`, `cyst`, `vessel`) is understood with the dataset's name and its other labels: beside
   `liver` a tumor is a liver tumor. A name that says nothing (`label_1`, `structure`) or is unknown is an error,
   with the nearest names.
3. **Sentences.** `autoseg/guidance/prompts.py` fills a handful of templates: the bare name; place and name; place,
   shape and name; region, name and neighbors; what an image shows, for every device on which the structure is seen.
   So they are not tied to the device of the training images, and hold on another one. Given a modality
   (`vlm encode-labels --modality CT`), only that one is named, and a further sentence tells how the structure looks
   there.
"""

FIELDS = """## An entry

```toml
region = "abdomen"          # of all structures in the file that do not say their own; stands behind "in the"
tissue = "solid organ"      # the same; a table of tissues.toml, which says how it looks

[structures.kidney]         # the canonical name; "{side}" in it where the side is not in front
sides = true                # there are two: this gives "kidney", "left kidney" and "right kidney"
location = "at the back of the {side} upper abdomen, beside the spine"
shape = "a bean-shaped organ with a notch toward the spine"
neighbors = ["{side} adrenal gland", "colon"]       # nearest first
synonyms = []               # names that sentences may use
abbreviations = ["{s}k", "kid"]                     # only to find it by; {s} is l or r
spellings = ["ren"]         # the same: words of datasets
left.neighbors = ["spleen", "left adrenal gland"]   # what is different on one side: location, shape, neighbors
appearance.CT = "of soft-tissue density, with a strongly enhanced outer layer after contrast"
```

`location` and `shape` must be there, and a region. `side = "left"` (or right) is for what is named with a side but
has no mirror twin, such as the chambers of the heart. Texts with `{side}` must also read right without it; "the
{side} half" then becomes "each half".

**To add a structure**, write it into a file of your own and give that beside the lexicon
(`load_lexicon(extra=FILE)`; option `--own-lexicon FILE` of `vlm encode-labels`). An entry with the name of one of
ours takes its place. A name that belongs to two structures is an error. To add one for everybody, put it into
`presets/anatomy` and run the tests: they check that every name leads to one entry, that sides mirror each other,
that neighbors exist and agree, and the sentences' words.
"""


def document() -> str:
    """The whole page."""
    return "\n".join([HEAD, example(), FIELDS, table()])


def example() -> str:
    """Sentences of some labels of one dataset."""
    found = entries_of_labels(LABELS, load_lexicon(), "CT", "Dataset042_Liver")
    labels = ", ".join(f"`{name}`" for name in LABELS)
    parts = [f"For example, of the CT dataset `Dataset042_Liver` with the labels {labels}:\n"]
    for label, entry in found.items():
        parts += [f"`{label}` is **{entry.canonical}**", "", *(f"- {text}" for text in sentences(entry)), ""]
    return "\n".join([*parts, "With `--modality CT` the last sentence of `kidney_left` is:\n",
                      f"- {sentences(found['kidney_left'], 'CT')[-1]}", ""])


def table() -> str:
    """How many structures the lexicon has, by region."""
    entries = load_lexicon().entries.values()
    written = shipped_structures()
    by_region = Counter(entry.region for entry in entries)
    by_hand = Counter(str(structure.region) for structure, _ in written.values())
    rows = [f"| {region} | {by_hand[region]} | {count} |" for region, count in
            sorted(by_region.items(), key=lambda pair: (-pair[1], pair[0]))]
    return "\n".join([
        "## How many there are", "",
        "A paired structure is written once and gives three entries: left, right, and without a side.", "",
        "| region | written | entries |", "|---|---|---|", *rows,
        f"| **all** | **{len(written)}** | **{len(entries)}** |", ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/lexicon.md"))
    out = parser.parse_args().out
    out.write_text(document(), encoding="utf-8")
    print(out)
