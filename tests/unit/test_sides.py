"""Labels that differ only in side are found in many spellings; the heart's chambers are not such labels."""

import pytest

from autoseg.planning.sides import find_sided_pairs


@pytest.mark.parametrize(("left", "right"), [
    ("left_kidney", "right_kidney"),
    ("kidney_L", "kidney_R"),
    ("l.femur", "r.femur"),
    ("Lung left upper lobe", "Lung right upper lobe"),
    ("LeftKidney", "RightKidney"),
    ("LKidney", "RKidney"),
    ("leftkidney", "rightkidney"),
    ("kidneyleft", "kidneyright"),
    ("Optic-Nerve-LT", "Optic-Nerve-RT"),
    ("HIP LEFT", "HIP RIGHT"),
    ("rib_left_1", "rib_right_1"),
    ("ren sinister", "ren dexter"),
    ("glandula_sinistra", "glandula_dextra"),
    ("Niere links", "Niere rechts"),
    ("linke Niere", "rechte Niere"),
    ("rein gauche", "rein droit"),
    ("glande gauche", "glande droite"),
    ("riñón izquierdo", "riñón derecho"),
    ("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"),
    ("ctx-lh-insula", "ctx-rh-insula"),
    ("left", "right"),
    ("L", "R"),
])
def test_a_pair_of_sides_is_found_whatever_its_order(left: str, right: str) -> None:
    assert find_sided_pairs(["spleen", right, left, "spine"]) == ((left, right),)


@pytest.mark.parametrize("names", [
    ("left_ventricle", "right_ventricle"),
    ("LV", "RV", "MYO"),
    ("LA", "RA"),
    ("left atrium", "right atrium"),
    ("LVmyo", "RVmyo"),
    ("heart_ventricle_left", "heart_ventricle_right"),
    ("leftventricle", "rightventricle"),
    ("left ventricular myocardium", "right ventricular myocardium"),
    ("linker Ventrikel", "rechter Ventrikel"),
    ("oreillette gauche", "oreillette droite"),
    ("ventrículo izquierdo", "ventrículo derecho"),
])
def test_chambers_of_the_heart_are_not_a_pair(names: tuple[str, ...]) -> None:
    assert find_sided_pairs(names) == ()


@pytest.mark.parametrize("names", [
    ("left_kidney", "right_lung"),
    ("left_upper_lobe", "right_lower_lobe"),
    ("left_kidney", "kidney"),
    ("left_left_lobe", "right_right_lobe"),
    ("liver", "river"),
    ("anterior", "posterior"),
    ("label_1", "label_2"),
    ("lung_left", "left_lung"),
])
def test_other_differences_are_not_sides(names: tuple[str, ...]) -> None:
    assert find_sided_pairs(names) == ()


def test_every_pair_of_a_body_is_found() -> None:
    names = [f"{organ}_{side}" for organ in ("kidney", "lung", "hip") for side in ("left", "right")]
    pairs = find_sided_pairs(["background", *names, "heart", "heart_atrium_left", "heart_atrium_right"])
    assert pairs == tuple((f"{organ}_left", f"{organ}_right") for organ in ("kidney", "lung", "hip"))
