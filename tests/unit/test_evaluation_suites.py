"""Suites on fixtures: each of the 21 published sets in its layout, and its metric as counted by hand."""

import json

import numpy as np
import pytest
from corpus_folder import CorpusFolder, make_pair
from evaluation_layouts import (
    LAYOUTS,
    FakeEmbedder,
    class_sentences,
    picture,
    random_items,
    random_vectors,
    table,
    write_set,
)

from autoseg.errors import UserError
from vlm.corpus.evaluation_sets import ImageListing
from vlm.corpus.leaks import LeakReport, SetReport
from vlm.evaluation.image_sets import read_image_set
from vlm.evaluation.leak_flags import leak_flags, plain
from vlm.evaluation.suite_files import choose_sets, read_suite
from vlm.evaluation.suite_records import GroupRule, Suite, SuiteSet
from vlm.evaluation.suites import EvaluationOptions, evaluate_suite

SUITE, PLANS = read_suite("unimed21")
QUICK = EvaluationOptions(resamples=100)


def plan_of(name):
    return choose_sets(PLANS, (name,))[0]


def accuracy_by_hand(items, vectors):
    right = [kind for kind, number in items if vectors[number][kind] == max(vectors[number])]
    return len(right) / len(items)


def auc_by_hand(items, vectors):
    """Pairs of a positive and a negative that the difference of the two cosines orders rightly; ties half."""
    scores = {kind: [vectors[number][1] - vectors[number][0] for of, number in items if of == kind]
              for kind in (0, 1)}
    won = [1.0 if positive > negative else 0.5 if positive == negative else 0.0
           for positive in scores[1] for negative in scores[0]]
    return sum(won) / len(won)


def numbered(name):
    """(items, vectors, embedder) of a set, the same for the same name."""
    plan = plan_of(name)
    seed = sorted(LAYOUTS).index(name)
    items = random_items(len(plan.classes), seed, most=3 if len(plan.classes) > 8 else 5)
    vectors = random_vectors(items, len(plan.classes), seed)
    return items, vectors, FakeEmbedder(vectors, class_sentences(plan))


def test_every_published_set_has_a_layout_here():
    assert set(LAYOUTS) == {plan.name for plan in PLANS} and len(PLANS) == 21


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_set_in_its_published_layout_gives_the_metric_counted_by_hand(name, tmp_path):
    items, vectors, embedder = numbered(name)
    write_set(name, tmp_path, items)
    plan = plan_of(name)
    report = evaluate_suite(embedder, SUITE, (plan,), tmp_path, QUICK).sets[0]
    by_hand = {"accuracy": accuracy_by_hand, "auc": auc_by_hand}[plan.metric]
    assert report.scores[plan.metric].value == pytest.approx(by_hand(items, vectors), abs=1e-12)
    assert report.scores["accuracy"].value == pytest.approx(accuracy_by_hand(items, vectors))
    assert list(report.images.values()) == [sum(of == kind for of, _ in items) for kind in range(len(plan.classes))]
    assert sum(map(sum, report.confusion)) == len(items)
    assert report.metric == ("auc" if name in ("acl_mri", "meniscal_mri", "thyroid_us", "breast_us", "refuge_retina")
                             else "accuracy"), "the paper's choice"
    low, high = report.scores[plan.metric].low, report.scores[plan.metric].high
    assert 0 <= low <= high <= 1


def test_groups_are_patients_and_volumes_where_the_files_tell_them(tmp_path):
    for name, groups_of in (("chexpert_5x200", lambda number: number // 2), ("ct_axial", lambda number: number // 3),
                            ("dr_regular", lambda number: number // 3)):
        items, _, embedder = numbered(name)
        write_set(name, tmp_path, items)
        report = evaluate_suite(embedder, SUITE, (plan_of(name),), tmp_path, QUICK).sets[0]
        assert report.groups == len({groups_of(number) for _, number in items}), name


@pytest.fixture(scope="module")
def all_sets(tmp_path_factory):
    """(folder of all 21 sets, embedder of their first 11 components, report)."""
    root = tmp_path_factory.mktemp("sets")
    width = max(len(plan.classes) for plan in PLANS)
    rng = np.random.default_rng(0)
    vectors = {number: rng.normal(size=width) for number in range(256)}
    vectors = {number: vector / np.linalg.norm(vector) for number, vector in vectors.items()}
    sentences = {}
    for plan in PLANS:
        write_set(plan.name, root, random_items(len(plan.classes), len(plan.name), 3))
        sentences |= {sentence: np.eye(width)[place] for place, name in enumerate(plan.classes)
                      for sentence in plan.prompts[name]}
    embedder = FakeEmbedder(vectors, sentences)
    return root, embedder, evaluate_suite(embedder, SUITE, PLANS, root, QUICK)


def test_means_over_modalities_and_over_all_are_those_of_the_sets(all_sets):
    _, _, report = all_sets
    values = {one.name: one.scores[one.metric].value for one in report.sets}
    assert report.average.metric.value == pytest.approx(np.mean(list(values.values())))
    assert {name: len(group.sets) for name, group in report.modalities.items()} == {
        "X-ray": 2, "CT": 3, "MRI": 2, "Ultrasound": 2, "Fundus": 4, "Pathology": 8}
    for group in report.modalities.values():
        assert group.metric.value == pytest.approx(np.mean([values[name] for name in group.sets]))
        assert group.metric.low <= group.metric.value <= group.metric.high
    widest = max(one.scores[one.metric].high - one.scores[one.metric].low for one in report.sets)
    assert report.average.metric.high - report.average.metric.low < widest, "a mean of 21 sets is known better"


def test_published_figures_stand_beside_ours_as_fractions(all_sets):
    _, _, report = all_sets
    printed = {one.name: one.published for one in report.sets}
    assert printed["acl_mri"]["UniMed-CLIP B/16"] == pytest.approx(0.8582)
    assert printed["pcam"] == {}, "not published one by one"
    assert report.average.published["BiomedCLIP"] == pytest.approx(0.4902)
    assert report.modalities["Pathology"].published["PMC-CLIP"] == pytest.approx(0.5356)


def test_a_sets_result_does_not_depend_on_its_company(all_sets):
    root, embedder, report = all_sets
    alone = evaluate_suite(embedder, SUITE, choose_sets(PLANS, ("osteo",)), root, QUICK)
    assert alone.sets[0] == next(one for one in report.sets if one.name == "osteo")
    assert alone.average is None and "all of its sets" in alone.notes[0]
    again = evaluate_suite(embedder, SUITE, choose_sets(PLANS, ("osteo",)), root, QUICK)
    assert again == alone


def test_sets_that_are_absent_are_refused_together_unless_allowed(tmp_path):
    items, _, embedder = numbered("bach")
    write_set("bach", tmp_path, items)
    plans = choose_sets(PLANS, ("bach", "pcam", "rsna_pneumonia"))
    with pytest.raises(UserError, match=r"2 of 3 sets(.|\n)*pcam: PCam_Test_preprocessed") as caught:
        evaluate_suite(embedder, SUITE, plans, tmp_path, QUICK)
    assert "rsna_pneumonia/RSNA_pneumonia_balanced_testfile.csv is not there" in str(caught.value)
    assert "--available" in str(caught.value)
    report = evaluate_suite(embedder, SUITE, plans, tmp_path, EvaluationOptions(resamples=100, available=True))
    assert report.absent == ("rsna_pneumonia", "pcam") and [one.name for one in report.sets] == ["bach"]
    with pytest.raises(UserError, match="3 of 3 sets"):
        evaluate_suite(embedder, SUITE, plans, tmp_path / "bach", EvaluationOptions(available=True))
    with pytest.raises(UserError, match="does not exist"):
        evaluate_suite(embedder, SUITE, plans, tmp_path / "nowhere", QUICK)


def own_plan(**changes):
    """A completed set of a user's own: shapes told apart by color."""
    return SuiteSet(**{"name": "shapes", "modality": "CT", "classes": ("round", "square"), "folder": "shapes",
                       "listing": ImageListing(glob=("*/*.png",)),
                       "prompts": {"round": ("a round shape",), "square": ("a square shape",)}, **changes})


def completed(tmp_path, *sets):
    """(suite, plans) as from a user's file."""
    suite = Suite(name="own", sets=sets)
    content = json.loads(suite.model_dump_json(exclude_none=True, exclude_defaults=True))
    path = tmp_path / "own.toml"
    path.write_text("\n".join(_toml(content)), encoding="utf-8")
    return read_suite(str(path))


def _toml(content):
    yield f'name = "{content["name"]}"'
    for one in content["sets"]:
        yield "[[sets]]"
        for key, value in one.items():
            yield f"{key} = {_inline(value)}"


def _inline(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_inline(cell)}" for key, cell in value.items()) + " }"
    return json.dumps(value)


SHAPES = FakeEmbedder({0: np.array([1.0, 0.0]), 1: np.array([0.0, 1.0]), 2: np.array([0.6, 0.8])},
                      {"a round shape": np.array([1.0, 0.0]), "a square shape": np.array([0.0, 1.0])})


def test_a_users_folders_are_measured(tmp_path):
    for place, (kind, number) in enumerate((("round", 0), ("round", 2), ("square", 1), ("square", 1))):
        picture(tmp_path / "shapes" / kind / f"{place}.png", number)
    suite, plans = completed(tmp_path, own_plan())
    report = evaluate_suite(SHAPES, suite, plans, tmp_path, QUICK)
    assert report.sets[0].scores["balanced_accuracy"].value == 0.75
    assert report.sets[0].per_class == {"round": 0.5, "square": 1.0}
    assert report.average.metric.value == 0.75, "all sets of the suite are there"
    assert report.sets[0].leak.status == "not checked"


def test_a_set_of_a_single_class_is_refused_and_an_empty_class_named(tmp_path):
    for place in range(3):
        picture(tmp_path / "shapes/round" / f"{place}.png", 0)
    suite, plans = completed(tmp_path, own_plan())
    with pytest.raises(UserError, match="all of its 3 images are of the class round"):
        evaluate_suite(SHAPES, suite, plans, tmp_path, QUICK)
    allowed = EvaluationOptions(resamples=100, available=True)
    with pytest.raises(UserError, match="all of its 3 images are of the class round"):
        evaluate_suite(SHAPES, suite, plans, tmp_path, allowed)
    three = own_plan(classes=("round", "square", "oval"), prompts={
        "round": ("a round shape",), "square": ("a square shape",), "oval": ("an oval shape",)})
    picture(tmp_path / "shapes/square/9.png", 1)
    suite, plans = completed(tmp_path, three)
    with pytest.raises(UserError, match="no test image is of the class oval"):
        evaluate_suite(SHAPES, suite, plans, tmp_path, QUICK)
    report = evaluate_suite(SHAPES, suite, plans, tmp_path, allowed).sets[0]
    assert report.images["oval"] == 0 and report.per_class["oval"] is None
    assert report.scores["balanced_accuracy"].value == 1.0


def test_images_that_cannot_be_opened_are_all_named_unless_allowed(tmp_path):
    for place, kind in enumerate(("round", "square", "round")):
        picture(tmp_path / "shapes" / kind / f"{place}.png", kind == "square")
    for name in ("a", "b"):
        (tmp_path / "shapes/square" / f"{name}.png").write_bytes(b"<html>")
    suite, plans = completed(tmp_path, own_plan())
    with pytest.raises(UserError, match=r"2 of 5 images(.|\n)*square/a.png: .*HTML(.|\n)*square/b.png"):
        evaluate_suite(SHAPES, suite, plans, tmp_path, QUICK)
    report = evaluate_suite(SHAPES, suite, plans, tmp_path, EvaluationOptions(resamples=100, available=True)).sets[0]
    assert report.unreadable == 2 and sum(report.images.values()) == 3


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


def test_a_set_of_one_class_cannot_even_be_written(tmp_path):
    (tmp_path / "own.toml").write_text('name = "own"\n[[sets]]\nname = "s"\nclasses = ["round"]\n')
    with pytest.raises(UserError, match="a single class"):
        read_suite(str(tmp_path / "own.toml"))


def test_names_that_do_not_exist_are_answered_with_near_ones(tmp_path):
    with pytest.raises(UserError, match=r"rsna \(did you mean rsna_pneumonia\?\)(.|\n)*chexpert_5x200"):
        choose_sets(PLANS, ("rsna",))
    with pytest.raises(UserError, match="Suites: mini, unimed21"):
        read_suite("medium")


def test_a_corpus_serves_as_data_with_the_same_numbers_as_folders(tmp_path):
    header = ["file", "label", "split", "text"]
    pairs, rows = [], []
    for row, (label, number, split) in enumerate((("round", 0, "test"), ("round", 2, "test"), ("square", 1, "test"),
                                                  ("square", 1, "train"), ("round", 0, "train"), ("", 0, "test"))):
        path = tmp_path / "shapes" / f"{row}.png"
        picture(path, number)
        rows.append([f"{row}.png", label, split, f"words {row}"])
        pairs.append(make_pair("toys", row, "CT", split, (f"words {row}", "a template"), ("native", "template"),
                               (label,) if label else (), form="png", data=path.read_bytes(), source_id=f"id {row}"))
    table(tmp_path / "shapes/t.csv", header, rows)
    corpus = CorpusFolder(tmp_path / "corpus", pairs).write()
    listing = ImageListing(index="t.csv", image="file", label="label", where={"split": "test"})
    suite, plans = completed(tmp_path, own_plan(listing=listing, train={"split": "train"}, captions="text",
                                                source="toys"))
    embedder = FakeEmbedder(SHAPES.vectors, {
        **SHAPES.sentences, "words 0": np.array([1.0, 0.0]), "words 2": np.array([0.0, 1.0])})
    reports = [evaluate_suite(embedder, suite, plans, data, QUICK) for data in (tmp_path, corpus)]
    assert reports[0].sets[0].confusion == reports[1].sets[0].confusion == ((1, 1), (0, 1))
    assert reports[0].sets[0].probe == reports[1].sets[0].probe != ()
    assert reports[0].sets[0].thumbnails == reports[1].sets[0].thumbnails
    assert reports[0].retrieval[0].recall == reports[1].retrieval[0].recall
    assert reports[1].retrieval[0].pairs == 4 and reports[1].sets[0].without_class == 1
    suite, plans = completed(tmp_path, own_plan(listing=listing, source="elsewhere"))
    with pytest.raises(UserError, match="no test pairs of the source elsewhere"):
        evaluate_suite(embedder, suite, plans, corpus, QUICK)


def test_leaks_of_a_corpus_are_flagged(tmp_path):
    sentence = plan_of("acl_mri").prompts["yes"][0]
    pairs = [make_pair("chest", 0, "X-ray", captions=("nothing", sentence.upper().rstrip("."))),
             make_pair("chest", 1, "X-ray", "test")]
    report = {name: SetReport(checked="hashes of 12 images", images=12, unreadable=0, found={}, dropped=0)
              for name in ("bach", "pcam")}
    report["pcam"] = report["pcam"].model_copy(update={"found": {"chest": {"image": 2}}, "dropped": 2})
    report["osteo"] = SetReport(checked="not on this disk", images=0, unreadable=0, found={}, dropped=0)
    leaks = LeakReport(sets=report, overlaps=(), unresolved={"rsna_pneumonia": ("chest",)}, dropped=2)
    corpus = CorpusFolder(tmp_path / "corpus", pairs, leaks=leaks).write()
    flags = leak_flags(PLANS, corpus)
    assert {name: flags[name].status for name in ("bach", "pcam", "osteo", "rsna_pneumonia", "acl_mri")} == {
        "bach": "none known", "pcam": "removed", "osteo": "not checked", "rsna_pneumonia": "unresolved",
        "acl_mri": "not checked"}
    assert "chest: 2" in flags["pcam"].said and "chest" in flags["rsna_pneumonia"].said
    assert flags["acl_mri"].prompts_in_corpus == (sentence,), "whatever its case and last point"
    assert not flags["bach"].prompts_in_corpus
    _, plans = completed(tmp_path, own_plan(source="chest"))
    flag = leak_flags(plans, corpus)["shapes"]
    assert flag.status == "same source" and flag.said.startswith("1 training pairs")


def test_plain_sentences_are_the_same_whatever_their_case_and_end():
    assert plain("A CT of  the head. ") == plain("a ct of the head") != plain("a ct of the heads")
