"""Label names in datasets' spellings become the same words; sides, numbers and abbreviations are understood."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import UserError
from autoseg.guidance.label_names import is_background, is_opaque, match_key, normalize
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.modalities import as_modality, modality_of_channel, modality_of_channels

SPELLINGS = {
    "left kidney": [
        "kidney_left", "LeftKidney", "L_Kidney", "kidney (L)", "Kidney-Left", "lk", "LK", "LKidney", "lkidney",
        "leftkidney", "kidneyleft", "left kidney", "KIDNEY LEFT", "lt. kidney", "kidney_lt", "LKid", "Kidney, left",
        "the left kidney", "ren sinister", "organ_kidney_left", "left_kidney_mask",
    ],
    "right kidney": ["kidney (R)", "rk", "RK", "R.Kidney", "KidneyRight", "rt kidney", "kidney_rt", "RKid",
                     "ren dexter"],
    "kidney": ["kidneys", "Kidney", "left and right kidney", "both kidneys", "bilateral kidneys"],
    "left lung": ["lt. lung", "lung_left", "LeftLung", "lung_l", "L lung"],
    "upper lobe of the left lung": ["lung_upper_lobe_left", "Lung left upper lobe", "LUL", "left upper lobe"],
    "L3 vertebra": ["vertebrae_L3", "L3", "vertebra L 3", "Vertebra_L3", "third lumbar vertebra", "lumbar vertebra 3"],
    "C1 vertebra": ["C1", "vertebrae_C1", "atlas", "vertebra C 1"],
    "T12 vertebra": ["T12", "Th12", "vertebrae_T12", "12th thoracic vertebra"],
    "left fourth rib": ["rib_left_4", "left rib 4", "rib4_left", "4th left rib", "RibLeft4", "rib_4_L"],
    "right twelfth rib": ["rib_right_12", "R_Rib12", "12th rib (right)"],
    "left ventricle": ["LV", "left ventricle", "heart_ventricle_left", "LeftVentricle", "lv_cavity", "ventricle_left"],
    "left ventricular myocardium": ["LVmyo", "LV_myo", "myo", "MYO", "myocardium", "heart_myocardium"],
    "left lateral ventricle": ["Left-Lateral-Ventricle", "lateral_ventricle_left", "LeftLateralVentricle"],
    "fourth ventricle": ["4th-Ventricle", "fourth_ventricle", "ventricle 4"],
    "left superior frontal gyrus": ["ctx-lh-superiorfrontal", "superior_frontal_gyrus_L", "lh.superiorfrontal"],
    "esophagus": ["oesophagus", "Oesophagus", "Eso"],
    "inferior vena cava": ["IVC", "inferior_vena_cava", "InferiorVenaCava", "inferiorvenacava", "vena cava inferior"],
    "optic disc": ["optic disk", "OpticDisc", "OD"],
    "retinal hemorrhages": ["retinal haemorrhage", "RetinalHemorrhages"],
    "right optic nerve": ["OpticNrv_R", "optic_nerve_right", "Optic-Nerve-RT"],
    "white matter hyperintensity": ["WMH", "white_matter_hyperintensities", "white matter lesions"],
}


@pytest.mark.parametrize(("wanted", "name"), [(wanted, name) for wanted, names in SPELLINGS.items() for name in names])
def test_every_usual_spelling_is_found(wanted, name):
    assert load_lexicon().find(name).canonical == wanted


@pytest.mark.parametrize(("one", "other"), [
    ("kidney_left", "kidney_right"), ("rib_left_4", "rib_left_5"), ("rib_left_4", "rib_right_4"), ("L3", "L4"),
    ("L3", "C3"), ("left lung", "lung"), ("3rd-Ventricle", "4th-Ventricle"), ("LV", "RV"), ("anterior", "posterior"),
])
def test_names_of_different_things_stay_different(one, other):
    assert match_key(one) != match_key(other)
    assert load_lexicon().find(one) != load_lexicon().find(other)


def test_normal_form_is_readable_and_has_the_side_in_front():
    assert normalize("Kidney_L") == "left kidney"
    assert normalize("vertebrae_L3") == "vertebra l3"
    assert normalize("Lung-Upper_LobeRight") == "right lung upper lobe"
    assert normalize("left and right kidney") == "kidney"


def test_a_vertebras_letter_is_no_side_and_a_single_letter_elsewhere_is():
    assert match_key("vertebra L 3")[0] == ""
    assert match_key("rib L 3")[0] == "left"


WORDS = st.sampled_from([
    "left", "right", "L", "R", "lt", "rh", "kidney", "Kidney", "vertebra", "disc", "C", "T", "th", "l", "3", "12",
    "4th", "first", "both", "and", "of", "oesophagus", "haem", "rib4", "LV", "ctx", "Vert", "sinistra", "é",
    "ß", "²", "disk",
])


NAMES = st.builds(str.join, st.sampled_from([" ", "_", ""]), st.lists(WORDS, max_size=7))


@given(st.one_of(st.text(max_size=30), NAMES))
def test_normalizing_twice_changes_nothing(name):
    once = normalize(name)
    assert normalize(once) == once
    assert match_key(once) == match_key(name)


@pytest.mark.parametrize("name", ["label_1", "label 3", "class2", "structure", "ROI", "roi_7", "5", "object", "organ",
                                  "mask", "region 2", "left", "unknown", "foreground", "Structure_12", "-", ""])
def test_names_that_say_nothing_are_refused(name):
    assert is_opaque(name)
    with pytest.raises(UserError, match="does not say what it stands for") as caught:
        load_lexicon().find(name)
    assert "dataset.json" in str(caught.value)


@pytest.mark.parametrize("name", ["background", "Background", "BG", "ignore"])
def test_background_needs_no_words(name):
    assert is_background(name)
    with pytest.raises(UserError, match="background"):
        load_lexicon().find(name)


@pytest.mark.parametrize(("name", "nearest"), [
    ("livr", "liver"), ("kidny_left", "left kidney"), ("pancrease", "pancreas"), ("vertebra", None),
    ("hart", "heart"), ("left_liver", "left lobe of the liver"), ("gall", None), ("spleeen", "spleen"),
])
def test_an_unknown_name_is_answered_with_the_nearest_and_how_to_add_one(name, nearest):
    lexicon = load_lexicon()
    if nearest is None:
        assert lexicon.find(name).canonical
        return
    with pytest.raises(UserError) as caught:
        lexicon.find(name)
    told = str(caught.value)
    assert repr(name) in told and repr(nearest) in told.splitlines()[1]
    assert f'[structures."{normalize(name)}"]' in told and "docs/lexicon.md" in told


def test_a_name_like_nothing_is_refused_without_a_guess():
    with pytest.raises(UserError) as caught:
        load_lexicon().find("xqzzw")
    assert "Nearest" not in str(caught.value) and "[structures." in str(caught.value)


@pytest.mark.parametrize(("context", "wanted"), [
    (("liver", "tumor"), "liver tumor"), (("kidney", "tumor"), "kidney tumor"), (("Task06_Lung",), "lung tumor"),
    (("liver", "kidney"), "tumor"), ((), "tumor"), (("tumor",), "tumor"), (("spine",), "tumor"),
])
def test_other_labels_tell_what_a_generic_name_means(context, wanted):
    assert load_lexicon().find("tumor", context).canonical == wanted


def test_the_first_context_that_decides_counts():
    lexicon = load_lexicon()
    assert lexicon.find("tumor", ("Dataset042_Liver",), ("left_kidney", "liver", "tumor")).canonical == "liver tumor"
    assert lexicon.find("tumor", ("Abdomen",), ("pancreas", "tumor")).canonical == "pancreatic tumor"


def test_context_does_not_change_what_a_name_says_itself():
    lexicon = load_lexicon()
    for name in ("liver", "left kidney", "LV", "kidney cyst"):
        assert lexicon.find(name, ("pancreas", "lung", "right kidney", "myocardium")) == lexicon.find(name)


@pytest.mark.parametrize(("name", "wanted"), [
    ("CT", "CT"), ("T2SPIR", "MR"), ("bSSFP", "MR"), ("LGE", "MR"), ("FLAIR", "MR"), ("T1c", "MR"), ("T1", "MR"),
    ("MRI", "MR"), ("ADC", "MR"), ("CXR", "X-ray"), ("X-Ray", "X-ray"), ("Ultrasound", "US"), ("Fundus", "fundus"),
    ("Pathology", "pathology"), ("PET", "PET"), ("CBCT", "CT"), ("OCT", "OCT"), ("R", None), ("0", None),
    ("noise", None),
])
def test_channel_names_tell_the_modality(name, wanted):
    assert modality_of_channel(name) == wanted


def test_channels_of_different_devices_have_no_modality_together():
    assert modality_of_channels(["FLAIR", "T1c"]) == "MR"
    assert modality_of_channels(["PET", "CT"]) is None
    assert modality_of_channels(["R", "G", "B"]) is None
    assert modality_of_channels([]) is None
    with pytest.raises(UserError, match="no modality; there are CT"):
        as_modality("smell")
