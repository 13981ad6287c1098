"""Laws of the anatomy lexicon: every name leads to one entry, sides mirror each other, neighbors exist and agree."""

import json
import re
from pathlib import Path

import pytest

from autoseg.errors import UserError
from autoseg.guidance.label_names import match_key
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.modalities import modality_of_channels
from autoseg.guidance.prompts import entries_of_labels
from autoseg.guidance.reading import entries_of, shipped_structures
from tests.conftest import REAL_DATA, real_dataset

LEXICON = load_lexicon()
ENTRIES = tuple(LEXICON.entries.values())
PAIRED = [entry for entry in ENTRIES if entry.mirror is not None]
CLASS_NAMES = json.loads((Path(__file__).parents[1] / "class_names.json").read_text(encoding="utf-8"))
"""Label names of public datasets, by dataset, and which structure each means: facts, checked by hand."""
OTHER = {"left": "right", "right": "left"}


def swapped(text):
    return re.sub(r"\b(left|right)\b", lambda match: OTHER[match[0]], text)


def test_there_are_more_than_three_hundred_structures():
    assert len(ENTRIES) >= 300
    assert len(shipped_structures()) >= 300  # written by hand, before both sides are made of one


def test_every_entry_is_found_by_each_of_its_names_and_by_no_other_entrys():
    owner = {}
    for entry in ENTRIES:
        for name in entry.names:
            assert LEXICON.find(name).canonical == entry.canonical
            assert owner.setdefault(match_key(name), entry.canonical) == entry.canonical
        assert LEXICON.find(entry.canonical.upper().replace(" ", "_")).canonical == entry.canonical


def test_left_and_right_are_mirror_images_but_for_what_is_written_for_one_side():
    own = {entry.canonical for name, (structure, _) in shipped_structures().items() if structure.left or structure.right
           for entry in entries_of(name, structure)}
    mirrored = 0
    for entry in PAIRED:
        twin = LEXICON.entries[entry.mirror]
        assert (twin.mirror, twin.side) == (entry.canonical, OTHER[entry.side])
        assert twin.canonical == swapped(entry.canonical)
        assert twin.synonyms == tuple(map(swapped, entry.synonyms))
        assert twin.appearance == {key: swapped(text) for key, text in entry.appearance.items()}
        if entry.canonical not in own:
            mirrored += 1
            assert twin.location == swapped(entry.location)
            assert twin.neighbors == tuple(map(swapped, entry.neighbors))
    assert mirrored > 200


def test_what_is_on_one_side_never_names_the_other():
    for entry in PAIRED:
        texts = (entry.canonical, entry.location, entry.shape, *entry.neighbors, *entry.synonyms)
        assert not [text for text in texts if re.search(rf"\b{OTHER[entry.side]}\b", text)], entry.canonical
        assert re.search(rf"\b{entry.side}\b", entry.location), entry.canonical


def test_every_paired_structure_has_an_entry_without_a_side_that_leads_to_both():
    halves = [entry.halves for entry in ENTRIES if entry.side == "both"]
    assert len(halves) * 2 == len(PAIRED)
    for left, right in halves:
        assert (LEXICON.entries[left].mirror, LEXICON.entries[right].mirror) == (right, left)
    for entry in ENTRIES:
        texts = " ".join((entry.canonical, entry.location, *entry.neighbors))
        if entry.side == "both":
            assert not re.search(r"\b(left|right|the of|the half)\b|[{}]|  ", texts), entry.canonical
        else:
            assert entry.halves is None


def test_neighbors_are_entries_and_not_the_structure_itself():
    for entry in ENTRIES:
        for neighbor in entry.neighbors:
            assert neighbor in LEXICON.entries and neighbor != entry.canonical, (entry.canonical, neighbor)
        assert len(set(entry.neighbors)) == len(entry.neighbors)


def test_neighbors_agree_about_sides():
    """Where the liver has the right kidney beside it and not the left one, the left kidney does not have the liver."""
    checked = 0
    for entry in ENTRIES:
        for neighbor in map(LEXICON.entries.get, entry.neighbors):
            if entry.side == "none" and neighbor.mirror is not None and neighbor.mirror not in entry.neighbors:
                checked += 1
                assert entry.canonical not in LEXICON.entries[neighbor.mirror].neighbors, (entry.canonical, neighbor)
    assert checked > 10


@pytest.mark.parametrize(("side", "names"), [
    ("left", ["spleen", "stomach", "descending colon", "sigmoid colon", "aorta", "descending aorta", "jejunum",
              "tail of the pancreas", "left ventricle", "left atrial appendage", "splenic vein", "abdominal aorta",
              "lingula of the left lung", "pulmonary artery"]),
    ("right", ["liver", "gallbladder", "duodenum", "cecum", "appendix", "ascending colon", "inferior vena cava",
               "superior vena cava", "head of the pancreas", "right ventricle", "right atrium", "ileum", "portal vein",
               "brachiocephalic trunk", "middle lobe of the right lung", "liver tumor", "superior mesenteric vein"]),
])
def test_single_organs_lie_on_the_patients_side_that_anatomy_gives_them(side, names):
    for name in names:
        location = LEXICON.find(name).location
        assert re.search(rf"\b{side}\b", location), name
        if name not in ("right ventricle",):  # it is wrapped around the left one
            assert not re.search(rf"\b{OTHER[side]}\b", location), name


def test_what_lies_in_the_midline_says_so():
    for name in ("spinal cord", "sacrum", "trachea", "prostate", "urinary bladder", "uterus", "rectum",
                 "third ventricle", "corpus callosum", "optic chiasm", "pituitary gland", "brainstem", "larynx"):
        assert "midline" in LEXICON.find(name).location, name


@pytest.mark.parametrize("dataset", CLASS_NAMES)
def test_class_names_of_public_datasets_mean_what_they_mean(dataset):
    facts = CLASS_NAMES[dataset]
    found = entries_of_labels(list(facts["labels"]), LEXICON, facts["modality"], dataset)
    assert {label: entry.canonical for label, entry in found.items()} == facts["labels"]


def test_the_full_lists_are_full():
    assert len(CLASS_NAMES["TotalSegmentator total"]["labels"]) == 117
    assert len(CLASS_NAMES["TotalSegmentator total_mr"]["labels"]) == 50
    assert len(CLASS_NAMES["BTCV"]["labels"]) == 13
    assert len(CLASS_NAMES["AMOS22"]["labels"]) == 15


@pytest.mark.parametrize("folder", [
    "AbdCT_SABS", "AbdMR_CHAOS_T2", "BraTS2013_2ch", "CXRLung_Montgomery", "Cardiac_MSCMR_LGE", "Cardiac_MSCMR_bSSFP",
    "Hippocampus_MSD04", "WBC_Dataset1",
])
def test_labels_of_the_real_datasets_are_known(folder):
    declared = json.loads((real_dataset(folder) / "dataset.json").read_text(encoding="utf-8"))
    modality = modality_of_channels(declared["channel_names"].values())
    for labels in (declared["labels"], declared.get("labels_13organs", {})):
        found = entries_of_labels(list(labels), LEXICON, modality, folder)
        assert set(found) == set(labels) - {"background"}
        for label, entry in found.items():
            for side in ("left", "right"):
                assert (side in label.lower()) == (entry.side == side) or entry.region == "heart"


def test_no_real_dataset_is_left_out():
    if not REAL_DATA.is_dir():
        pytest.skip("the real datasets are not on this machine")
    for file in REAL_DATA.glob("*/dataset.json"):
        labels = json.loads(file.read_text(encoding="utf-8"))["labels"]
        assert entries_of_labels(list(labels), LEXICON, None, file.parent.name)


# ---------------------------------------------------------------- a lexicon file of the user's
def extra(folder, text):
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


OWN = """
region = "abdomen"
tissue = "artery"
[structures."stent graft"]
location = "inside the aorta, below the arteries of the kidneys"
shape = "a forked tube of fine mesh"
neighbors = ["aorta"]
abbreviations = ["EVAR"]
[structures."graft limb"]
sides = true
location = "in the {side} common iliac artery"
shape = "a thin tube"
neighbors = ["stent graft", "{side} common iliac artery"]
abbreviations = ["{s}limb"]
"""


def test_a_users_structures_are_found_with_ours(tmp_path):
    lexicon = load_lexicon(extra(tmp_path, OWN))
    assert lexicon.find("evar").canonical == "stent graft"
    assert lexicon.find("limb_graft_left").neighbors == ("stent graft", "left common iliac artery")
    assert lexicon.find("Rlimb").canonical == "right graft limb"
    assert lexicon.find("stent graft").appearance["CT"] == LEXICON.find("aorta").appearance["CT"]
    assert len(lexicon.entries) == len(ENTRIES) + 4 and lexicon.find("liver") == LEXICON.find("liver")
    with pytest.raises(UserError):
        LEXICON.find("stent graft")


def test_a_user_can_give_words_to_a_name_that_says_nothing(tmp_path):
    own = '[structures.label_1]\nregion = "pelvis"\nlocation = "in the right groin"\nshape = "a graft"\n'
    path = extra(tmp_path, own)
    assert load_lexicon(path).find("label_1").shape == "a graft"
    path.write_text(own.replace("graft", "net"), encoding="utf-8")
    assert load_lexicon(path).find("Label 1").shape == "a net"


def test_a_users_structure_takes_the_place_of_ours(tmp_path):
    own = '[structures.kidney]\nregion = "pelvis"\nlocation = "in the right groin"\nshape = "a graft"\n'
    lexicon = load_lexicon(extra(tmp_path, own))
    assert lexicon.find("kidney").location == "in the right groin"
    with pytest.raises(UserError, match="'left kidney' is not in the anatomy lexicon"):
        lexicon.find("left kidney")


BODY = 'location = "here"\nshape = "a ball"\n'


@pytest.mark.parametrize(("text", "told"), [
    ("[structures.x]\nlocation = ", "not valid TOML"),
    (f"[structures.x]\n{BODY}", "no region for x"),
    ('region = "arm"\n', "structures"),
    ('region = "arm"\n[structures.x]\nshape = "a ball"\n', "structures.x.location"),
    (f'region = "arm"\n[structures.x]\n{BODY}color = "red"\n', "structures.x.color"),
    (f'region = "arm"\n[structures.x]\n{BODY}tissue = "wood"\n', "'wood' is none of"),
    (f'region = "arm"\n[structures.x]\n{BODY}synonyms = ["IVC"]\n', "inferior vena cava"),
    (f'region = "arm"\n[structures.x]\n{BODY}appearance.XR = "a line"\n', "XR"),
    ('region = "arm"\n[structures.x]\nlocation = "in the {side} hand"\nshape = "a ball"\n', "sides = true"),
    (f'region = "arm"\n[structures.x]\nsides = true\n{BODY}', "must name the side"),
    ('region = "arm"\n[structures.x]\nsides = true\nlocation = "{sid}, {side}"\nshape = "a ball"\n', "{sid}"),
    ('region = "arm"\n[structures.x]\nsides = true\nside = "left"\nlocation = "on the {side}"\nshape = "a"\n',
     "leave out"),
])
def test_a_wrong_file_is_refused_with_its_name_and_the_place(tmp_path, text, told):
    path = extra(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_lexicon(path)
    assert told in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_or_unreadable_file_is_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_lexicon(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not readable"):
        load_lexicon(tmp_path / "bytes.toml")
