"""Scores per case and label, their means, and what cannot be scored."""

import errno
from pathlib import Path

import numpy as np
import pytest

from autoseg.errors import UserError
from autoseg.evaluation.pairing import FilePair, pair_files
from autoseg.evaluation.scoring import Tolerance, score_case, score_files, score_folders, summarize
from autoseg.evaluation.table import format_table
from autoseg.labelling import Labelled
from autoseg.schema import CaseScores, LabelScores

SPACING = (3.0, 1.0, 2.0)
ONE = Labelled(labels={"background": 0, "a": 1})
LABELS = Labelled(labels={"background": 0, "tumor": 7, "edema": 300})


def random_labels(seed: int, shape: tuple[int, int, int] = (6, 9, 8)) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([0, 0, 7, 300], dtype=np.int16), shape)


def write_nifti(labels: np.ndarray, path, spacing=SPACING) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels.T, np.diag([*spacing[::-1], 1.0])), path)


def scored(**dice: float | None) -> dict[str, LabelScores]:
    return {name: LabelScores(dice=value, nsd=value, hd95=None if not value else 1.0, volume_ml=1.0,
                              reference_volume_ml=1.0) for name, value in dice.items()}


def test_score_case_equals_the_metrics_on_every_labels_masks():
    from autoseg.evaluation.metrics import dice, hd95, nsd, surface_distances, volume_ml

    prediction, reference = random_labels(0), random_labels(1)
    reference[:, :4] = 0
    tolerances = Tolerance(1.0, {"edema": 2.5})
    scores = score_case("a", prediction, reference, SPACING, labels=LABELS, tolerance=tolerances)
    assert list(scores.labels) == ["tumor", "edema"]
    for name, value, tolerance in (("tumor", 7, 1.0), ("edema", 300, 2.5)):
        ours, theirs = prediction == value, reference == value
        distances = surface_distances(ours, theirs, SPACING)
        assert scores.labels[name] == LabelScores(
            dice=dice(ours, theirs), nsd=nsd(distances, tolerance), hd95=hd95(distances),
            volume_ml=volume_ml(ours, SPACING), reference_volume_ml=volume_ml(theirs, SPACING))


def test_a_flat_label_in_a_volume_is_scored_in_three_dimensions_and_a_flat_image_in_two():
    volume = np.zeros((3, 7, 7), dtype=np.uint8)
    volume[1, 1:6, 1:6] = 1
    shrunk = volume.copy()
    shrunk[1, 3, 3] = 0  # In 3-D every voxel of the one-slice label is boundary; in 2-D only its rim is.
    in_volume, in_image = (
        score_case("a", ours, theirs, (1.0, 1.0, 1.0), labels=ONE, tolerance=Tolerance(0.0)).labels["a"].nsd
        for ours, theirs in ((shrunk, volume), (shrunk[1:2], volume[1:2]))
    )
    assert in_volume == pytest.approx((24 + 24) / (24 + 25))
    assert in_image == pytest.approx((16 + 16) / (20 + 16))


def test_a_label_in_neither_mask_is_null_and_one_in_one_mask_is_zero():
    prediction = np.zeros((4, 5, 6), dtype=np.uint8)
    prediction[1, 2, 3] = 2
    labels = Labelled(labels={"background": 0, "absent": 1, "invented": 2})
    scores = score_case("a", prediction, np.zeros_like(prediction), SPACING, labels=labels,
                        tolerance=Tolerance()).labels
    assert set(scores["absent"].model_dump().values()) == {None, 0.0}
    assert (scores["absent"].dice, scores["absent"].nsd, scores["absent"].hd95) == (None, None, None)
    assert (scores["invented"].dice, scores["invented"].nsd, scores["invented"].hd95) == (0.0, 0.0, None)


def test_means_are_over_labels_of_the_labels_means_with_null_skipped():
    cases = [CaseScores(id="a", labels=scored(tumor=1.0, edema=0.5)),
             CaseScores(id="b", labels=scored(tumor=0.2, edema=None)),
             CaseScores(id="c", labels=scored(tumor=0.0, edema=None))]
    scores = summarize(cases, ("tumor", "edema", "never"), Tolerance())
    assert scores.labels["tumor"].dice == pytest.approx(0.4)
    assert scores.labels["edema"].dice == 0.5
    assert scores.labels["never"].dice is None
    assert scores.mean.dice == pytest.approx(0.45)  # the mean over all four entries would be 0.425
    assert scores.cases[0].labels["never"].dice is None
    assert summarize([], ("tumor",), Tolerance()).mean.dice is None


def test_folders_are_scored_in_order_and_by_value_when_no_names_are_given(tmp_path):
    for index in range(3):
        write_nifti(random_labels(index), tmp_path / "p" / f"case_{index}.nii.gz")
        write_nifti(random_labels(index if index else 9), tmp_path / "r" / f"case_{index}.nii.gz")
    (tmp_path / "p" / "labels.json").write_text("{}")
    named = score_folders(tmp_path / "p", tmp_path / "r", LABELS)
    assert [case.id for case in named.cases] == ["case_0", "case_1", "case_2"]
    assert named.cases[0].labels["tumor"].dice < 1 == named.cases[1].labels["tumor"].dice
    found = score_folders(tmp_path / "p", tmp_path / "r", tolerance=Tolerance(1.0, {"label_7": 3.0}))
    assert list(found.labels) == ["label_7", "label_300"]
    assert found.policy.nsd_tolerance_mm == {"label_7": 3.0, "label_300": 1.0}
    assert found.labels["label_7"].dice == named.labels["tumor"].dice


def test_only_the_asked_references_are_scored_when_given_as_a_mapping(tmp_path):
    for name in ("a", "b"):
        write_nifti(random_labels(0), tmp_path / "r" / f"{name}.nii.gz")
    write_nifti(random_labels(1), tmp_path / "p" / "a.nii.gz")
    scores = score_folders(tmp_path / "p", {"a": tmp_path / "r" / "a.nii.gz"}, LABELS)
    assert [case.id for case in scores.cases] == ["a"]


def test_files_without_partner_are_all_named(tmp_path):
    for name in ("both", "only_p1", "only_p2"):
        write_nifti(random_labels(0), tmp_path / "p" / f"{name}.nii.gz")
    for name in ("both", "only_r"):
        write_nifti(random_labels(0), tmp_path / "r" / f"{name}.nii.gz")
    with pytest.raises(UserError) as error:
        pair_files(tmp_path / "p", tmp_path / "r")
    assert all(name in str(error.value) for name in ("only_p1", "only_p2", "only_r"))
    with pytest.raises(UserError, match="not a folder"):
        pair_files(tmp_path / "absent", tmp_path / "r")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no label files"):
        pair_files(tmp_path / "p", tmp_path / "empty")


def test_every_case_that_cannot_be_scored_is_reported_at_once(tmp_path):
    good = random_labels(0)
    contents = {"shape": good[:, 1:], "spacing": good, "value": good + np.int16(1), "fine": good}
    pairs = []
    for name, labels in contents.items():
        spacing = (3.0, 1.0, 2.5) if name == "spacing" else SPACING
        write_nifti(labels, tmp_path / "p" / f"{name}.nii.gz", spacing)
        write_nifti(good, tmp_path / "r" / f"{name}.nii.gz")
        pairs.append(FilePair(name, tmp_path / "p" / f"{name}.nii.gz", tmp_path / "r" / f"{name}.nii.gz"))
    (tmp_path / "p" / "broken.nii.gz").write_bytes(b"")
    pairs.append(FilePair("broken", tmp_path / "p" / "broken.nii.gz", pairs[0].reference))
    with pytest.raises(UserError) as error:
        score_files(pairs, LABELS)
    message = str(error.value)
    assert "4 of 5" in message
    assert "fine.nii.gz" not in message
    for expected in ("(6, 8, 8) against (6, 9, 8)", "2.5) against (3.0, 1.0, 2.0) mm", "1, 8, 301", "broken"):
        assert expected in message


def test_a_tolerance_for_an_unknown_label_is_refused():
    with pytest.raises(UserError, match="'liver'"):
        summarize([], ("tumor",), Tolerance(2.0, {"liver": 3.0}))


def test_the_table_shows_means_spread_and_what_was_skipped():
    cases = [CaseScores(id="a", labels=scored(tumor=1.0, edema=0.5)),
             CaseScores(id="b", labels=scored(tumor=0.0, edema=None))]
    table = format_table(summarize(cases, ("tumor", "edema"), Tolerance()))
    for expected in ("NSD at 2 mm", "0.500 ± 0.707", "edema: in neither mask of 1 case (b)",
                     "tumor: in only one mask of 1 case (b)", "lowest Dice: 0.000, tumor in b"):
        assert expected in table
    assert len({len(line) for line in table.splitlines() if set(line) == {"-"}}) == 1


def test_a_folder_that_may_not_be_read_is_a_user_error(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match="cannot be listed: Permission denied"):
        pair_files(tmp_path, tmp_path)
