"""Suites of a user's own: what is read of a file, an index and folders, and what is refused before anything runs."""

import pytest
from evaluation_layouts import picture, table
from own_suites import SHAPES, completed, own_plan

from autoseg.errors import UserError
from vlm.corpus.evaluation_sets import ImageListing
from vlm.evaluation.image_sets import read_image_set
from vlm.evaluation.suite_files import choose_sets, read_suite
from vlm.evaluation.suite_records import GroupRule
from vlm.evaluation.suites import EvaluationOptions, evaluate_suite

QUICK = EvaluationOptions(resamples=100)


@pytest.mark.parametrize(("rows", "changes", "message"), [
    ([["x.png", "oval"]], {}, "'oval' \\(1\\)(.|\n)*Expected: round, square"),
    ([["x.png", "round"]], {"listing": ImageListing(index="t.csv", image="file", label="kind")}, "no column kind"),
    ([["x.png", "round"]], {"listing": ImageListing(index="t.csv", image="file")}, "no column round, square"),
    ([["../x.png", "round"], ["x.png", "square"]], {}, "leaves the source's image folder"),
    ([["x.png", "round"], ["y.png", "square"]], {}, "2 of 2 images(.|\n)*does not exist"),
])
def test_an_index_that_cannot_be_used_is_refused(tmp_path, rows, changes, message):
    table(tmp_path / "shapes/t.csv", ["file", "label"], rows)
    listing = ImageListing(index="t.csv", image="file", label="label")
    suite, plans = completed(tmp_path, own_plan(**{"listing": listing, **changes}))
    with pytest.raises(UserError, match=message):
        evaluate_suite(SHAPES, suite, plans, tmp_path, QUICK)


def test_an_index_gives_classes_patients_captions_and_a_training_part(tmp_path):
    header = ["file", "label", "split", "text", "id"]
    table(tmp_path / "shapes/t.csv", header, [
        ["0.png", "round", "test", " a ball ", "patient 1 left"], ["1.png", "", "test", "", "patient 1 right"],
        ["2.png", "square", "test", "a box", "nobody"], ["3.png", "square", "train", "", "patient 9"],
        ["4.png", "round", "val", "", "patient 9"]])
    listing = ImageListing(index="t.csv", image="file", label="label", where={"split": "test"})
    suite, plans = completed(tmp_path, own_plan(
        listing=listing, train={"split": "train"}, captions="text",
        group=GroupRule(column="id", pattern=r"patient (\d+)")))
    images = read_image_set(plans[0], tmp_path)
    assert [file.image for file in images.files] == ["0.png", "1.png", "2.png", "3.png"]
    assert images.targets.tolist() == [0, -1, 1, 1] and images.is_train.tolist() == [False] * 3 + [True]
    assert images.captions == ("a ball", "", "a box", "")
    assert len(set(images.groups[:2])) == 1 and len(set(images.groups)) == 3
    assert images.tested.tolist() == [True, False, True, False]


@pytest.mark.parametrize(("changes", "message"), [
    ({"listing": None}, "no listing, and there is no evaluation card of this name"),
    ({"modality": None}, "gives no modality"), ({"folder": None, "modality": None}, "no modality and no folder"),
    ({"classes": (), "prompts": None}, "neither classes nor a column of captions"),
    ({"prompts": None}, "there is no prompt preset shapes"),
    ({"prompts": {"round": ("a round one",)}}, "classes without a sentence: square"),
    ({"prompts": {"round": ("abc",), "square": ("abd",), "oval": ("abe",)}}, "is no class: oval"),
    ({"train": {"split": "train"}}, "need a listing with an index"),
])
def test_a_suite_file_that_is_not_complete_says_what_is_missing(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        completed(tmp_path, own_plan(**changes))


@pytest.mark.parametrize(("line", "message"), [
    ('group = { pattern = "(" }', "is no regular expression"), ('group = { pattern = "a" }', "exactly one group"),
    ('listing = { glob = ["*.png"], label_pattern = "(" }', "is no regular expression"),
    ('listing = { glob = ["*.png"], label_pattern = "a" }', "exactly one group"),
    ('listing = { glob = ["/etc/*.png"] }', "below the set's folder"), ('listing = { glob = [""] }', "not empty"),
    ('listing = { glob = ["../*/*.png"] }', "below the set's folder"), ("listing = { }", "either glob or index"),
    ('listing = { index = "../t.csv" }', "below the set's folder"),
    ('listing = { index = "t.csv", image = -1 }', "counted from 0"), ('folder = "/etc"', "below --data"),
    ('folder = "../etc"', "below --data"), ('prompts = { a = ["   "], b = ["fine"] }', "prompts"),
    ('group = { column = -1 }', "column"),
])
def test_a_suite_file_that_would_fail_later_is_refused_when_it_is_read(tmp_path, line, message):
    (tmp_path / "own.toml").write_text(f'name = "own"\n[[sets]]\nname = "s"\nclasses = ["a", "b"]\n{line}\n')
    with pytest.raises(UserError, match=message):
        read_suite(str(tmp_path / "own.toml"))


def test_a_suite_file_that_is_no_text_is_a_users_error(tmp_path):
    (tmp_path / "own.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text"):
        read_suite(str(tmp_path / "own.toml"))


def test_a_pattern_whose_group_is_empty_finds_no_class(tmp_path):
    for kind in ("round", "square"):
        picture(tmp_path / "shapes" / kind / "0.png", kind == "square")
    _, plans = completed(tmp_path, own_plan(
        listing=ImageListing(glob=("*/*.png",), label_pattern="/(zz)?"), group=GroupRule(pattern="s(zz)?")))
    images = read_image_set(plans[0], tmp_path)
    assert images.targets.tolist() == [-1, -1] and len(set(images.groups)) == 2


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_opened(tmp_path):
    for place, kind in enumerate(("round", "square", "round")):
        picture(tmp_path / "shapes" / kind / f"{place}.png", kind == "square")
    (tmp_path / "shapes/round/gone.png").symlink_to("nowhere.png")
    (tmp_path / "shapes/round/folder.png").mkdir()
    suite, plans = completed(tmp_path, own_plan())
    with pytest.raises(UserError, match=r"1 of 4 images(.|\n)*round/gone.png: the file does not exist"):
        evaluate_suite(SHAPES, suite, plans, tmp_path, QUICK)


def test_an_index_without_a_row_of_the_set_says_so(tmp_path):
    listing = ImageListing(index="t.csv", image="file", label="label", where={"split": "test"})
    suite, plans = completed(tmp_path, own_plan(listing=listing))
    for rows in ([], [["x.png", "round", "Test"]]):
        table(tmp_path / "shapes/t.csv", ["file", "label", "split"], rows)
        with pytest.raises(UserError, match=r"t\.csv has no row of a test image \(split = test\)"):
            evaluate_suite(SHAPES, suite, plans, tmp_path, QUICK)


def test_a_training_part_that_lacks_a_class_is_refused_unless_allowed(tmp_path):
    rows = [["0.png", "round", "test"], ["1.png", "square", "test"], ["2.png", "round", "train"]]
    for row in rows:
        picture(tmp_path / "shapes" / row[0], row[1] == "square")
    table(tmp_path / "shapes/t.csv", ["file", "label", "split"], rows)
    listing = ImageListing(index="t.csv", image="file", label="label", where={"split": "test"})
    suite, plans = completed(tmp_path, own_plan(listing=listing, train={"split": "train"}))
    with pytest.raises(UserError, match=r"no training image \(split = train\) is of the class square"):
        evaluate_suite(SHAPES, suite, plans, tmp_path, QUICK)
    for allowed in (EvaluationOptions(resamples=100, available=True),
                    EvaluationOptions(resamples=100, with_probes=False)):
        assert evaluate_suite(SHAPES, suite, plans, tmp_path, allowed).sets[0].probe == ()


def test_a_set_of_one_class_cannot_even_be_written(tmp_path):
    (tmp_path / "own.toml").write_text('name = "own"\n[[sets]]\nname = "s"\nclasses = ["round"]\n')
    with pytest.raises(UserError, match="a single class"):
        read_suite(str(tmp_path / "own.toml"))


def test_names_that_do_not_exist_are_answered_with_near_ones(tmp_path):
    with pytest.raises(UserError, match=r"rsna \(did you mean rsna_pneumonia\?\)(.|\n)*chexpert_5x200"):
        choose_sets(read_suite("unimed21")[1], ("rsna",))
    with pytest.raises(UserError, match="Suites: mini, unimed21"):
        read_suite("medium")
