"""Write docs/captions.md: thirty label sets over six modalities with the sentences that the grammar makes of them.

    python benchmarks/print_captions.py [--out docs/captions.md]
"""

import argparse
from pathlib import Path

from vlm.corpus.captions.checks import check_caption
from vlm.corpus.captions.grammar import grammar_captions
from vlm.corpus.captions.tables import load_table
from vlm.corpus.rows import LabelSet

SETS: tuple[tuple[str | None, LabelSet], ...] = (
    ("chest_xray", LabelSet("X-ray", ("Pleural Effusion",), anatomy="chest", view="frontal")),
    ("chest_xray", LabelSet("X-ray", ("Cardiomegaly", "Edema", "Pleural Effusion"), ("Pneumonia",), ("Pneumothorax",),
                            "chest", "frontal")),
    ("chest_xray", LabelSet("X-ray", ("Atelectasis", "Support Devices"), ("Consolidation",), (), "chest", "AP")),
    ("chest_xray", LabelSet("X-ray", ("No Finding", "Support Devices"), (), (), "chest", "frontal")),
    ("chest_xray", LabelSet("X-ray", ("No Finding",), (), (), "chest", "PA")),
    ("chest_xray", LabelSet("X-ray", (), ("Pneumonia", "Atelectasis"), (), "chest", "frontal")),
    ("chest_xray", LabelSet("X-ray", (), (), ("Pneumothorax", "Pleural Effusion"), "chest", "frontal")),
    ("chest_xray", LabelSet("X-ray", ("bacterial pneumonia",), anatomy="chest", view="frontal")),
    ("chest_xray", LabelSet("X-ray", ("Infiltration", "Nodule", "Mass", "Effusion"), anatomy="chest")),
    ("chest_ct", LabelSet("CT", ("COVID-19",), anatomy="chest")),
    ("chest_ct", LabelSet("CT", ("non-COVID-19",), anatomy="chest")),
    ("chest_ct", LabelSet("CT", ("malignant lung cancer",), anatomy="chest")),
    ("body_region", LabelSet("CT", ("abdomen",))),
    ("radimagenet", LabelSet("CT", ("abd-renal lesion",))),
    ("general", LabelSet("CT", ("kidney stone",), anatomy="kidney")),
    ("brain_mri", LabelSet("MRI", ("glioma",), anatomy="brain")),
    ("brain_mri", LabelSet("MRI", ("no tumor",), anatomy="brain")),
    ("radimagenet", LabelSet("MRI", ("knee-acl pathology",), anatomy="knee")),
    ("radimagenet", LabelSet("MRI", ("spine-normal",), anatomy="spine")),
    ("breast_ultrasound", LabelSet("Ultrasound", ("malignant breast tumor",), anatomy="breast")),
    ("breast_ultrasound", LabelSet("Ultrasound", ("normal breast tissue",), anatomy="breast")),
    ("lung_ultrasound", LabelSet("Ultrasound", ("COVID-19 lung",), anatomy="lung")),
    ("radimagenet", LabelSet("Ultrasound", ("US-gb",))),
    ("lung_colon_histology", LabelSet("Pathology", ("lung squamous cell carcinoma",))),
    ("lung_colon_histology", LabelSet("Pathology", ("benign colonic tissue",))),
    ("histology", LabelSet("Pathology", ("neutrophil",))),
    ("diabetic_retinopathy", LabelSet("Fundus", ("2",), anatomy="eye")),
    ("fundus", LabelSet("Fundus", ("glaucoma", "cataract"), anatomy="eye")),
    ("fundus", LabelSet("Fundus", ("drusen", "no diabetic retinopathy"), (), (), "eye")),
    (None, LabelSet("Ultrasound", ("hepatic_steatosis",), ("Gallstones",), (), "abdomen")),
)

HEAD = """# Captions from labels

*Written by `python benchmarks/print_captions.py`; do not edit by hand.*

## How captions are made

A source's labels become sentences in three steps.

1. **Words.** The source's label table, `presets/vlm/findings/<table>.toml`, says what a label means in a sentence: noun
   phrases with their articles, what stands behind "no", whether the label means the absence of disease or is only a
   region of the body, which labels follow from it, and how an image of each modality is called. All of it is our own
   text. A label that no table has is put into words as it stands.
2. **Grammar.** `vlm/corpus/captions/grammar.py` fills sentence patterns (`patterns.py`) with these words. Each sentence
   names the modality and every present finding, up to five; of more, every sentence names other five. Uncertain
   findings are called possible in every second sentence, absent ones are mentioned in few, since a report does not
   list all that is not there. Equal labels give equal sentences on every machine.
3. **Checks.** `vlm/corpus/captions/checks.py` refuses a sentence that does not name the modality or a present finding,
   denies what is present, asserts what is absent, states an uncertain finding as a fact, calls an image normal beside
   a disease, names another modality, is too short or too long (3 to 60 words, 64 words and punctuation marks), or is
   no clean English. A language model's sentences (`--captions endpoint` or `local`) pass the same checks; the
   grammar's pass them for every label of every table, which a test proves.

Labels that contradict each other are read with care: a normal image beside a disease is not called normal, and what is
present or implied is never called absent. The checks know a finding by the phrases of its table; other words for it,
however right, are refused, and negation is judged by the words around a finding, not by understanding the sentence.

## Thirty label sets
"""


def document() -> str:
    """The whole page."""
    parts = [HEAD]
    for number, (name, labels) in enumerate(SETS, 1):
        table = load_table(name) if name else None
        facts = [("present", labels.present), ("uncertain", labels.uncertain), ("absent", labels.absent)]
        told = "; ".join(f"{what}: {', '.join(f'`{label}`' for label in found)}" for what, found in facts if found)
        where = f"; view: {labels.view}" if labels.view else ""
        parts.append(f"### {number}. {labels.modality}, table {name or 'none'}\n\n{told}{where}\n")
        for sentence in grammar_captions(labels, table):
            if problem := check_caption(sentence, labels, table):
                raise SystemExit(f"{sentence!r} does not pass the checks: {problem}")
            parts.append(f"- {sentence}")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/captions.md"))
    out = parser.parse_args().out
    out.write_text(document(), encoding="utf-8")
    print(out)
