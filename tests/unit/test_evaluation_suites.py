"""Suites on fixtures: each of the 21 published sets in its layout, and its metric as counted by hand."""

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
from own_suites import SHAPES, completed, own_plan

from autoseg.errors import UserError
from vlm.corpus.evaluation_sets import ImageListing
from vlm.corpus.leaks import LeakReport, SetReport
from vlm.corpus.stored_pairs import read_manifest
from vlm.evaluation.corpus_sets import read_corpus_set
from vlm.evaluation.leak_flags import leak_flags, plain
from vlm.evaluation.suite_files import choose_sets, read_suite
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


def test_cut_sentences_and_sets_of_another_size_than_published_are_named(tmp_path):
    items, _, embedder = numbered("bach")
    write_set("bach", tmp_path, items)
    report = evaluate_suite(embedder, SUITE, (plan_of("bach"),), tmp_path, QUICK)
    assert report.sets[0].images_expected == 400
    assert any(f"bach ({len(items)} of 400)" in note for note in report.notes)
    for place, kind in enumerate(("round", "square")):
        picture(tmp_path / "shapes" / kind / f"{place}.png", place)
    suite, plans = completed(tmp_path, own_plan(prompts={"round": ("a round shape " * 9,), "square": ("a square",)}))
    own = evaluate_suite(SHAPES, suite, plans, tmp_path, QUICK)
    assert own.sets[0].truncated == 1 and own.sets[0].images_expected is None
    assert own.notes == ("Sentences that are longer than the model's context and were cut: shapes (1).",)


def test_a_text_tower_that_has_diverged_is_named(tmp_path):
    for place, kind in enumerate(("round", "square")):
        picture(tmp_path / "shapes" / kind / f"{place}.png", place)
    suite, plans = completed(tmp_path, own_plan())
    broken = FakeEmbedder(SHAPES.vectors, {"a round shape": np.array([np.nan, 0.0])})
    with pytest.raises(UserError, match="sentences: the model fake gives embeddings that are no numbers"):
        evaluate_suite(broken, suite, plans, tmp_path, QUICK)


def test_medimetas_sets_have_linear_probes(tmp_path):
    items, _, embedder = numbered("ct_axial")
    write_set("ct_axial", tmp_path, items)
    found = evaluate_suite(embedder, SUITE, (plan_of("ct_axial"),), tmp_path, QUICK).sets[0]
    assert [score.share for score in found.probe] == [0.01, 0.1, 1.0] and found.thumbnails is not None
    assert found.probe[-1].images == len(items)


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


def test_patients_of_a_corpus_are_those_of_the_rule_or_else_its_own(tmp_path):
    pairs = [make_pair("toys", row, "CT", "test", labels=(("round", "square")[row % 2],), patient=f"{row // 4:016x}",
                       source_id=f"case {row // 2}") for row in range(8)]
    corpus = CorpusFolder(tmp_path / "corpus", pairs).write()
    for group, expected in ((None, [0, 0, 0, 0, 1, 1, 1, 1]), ({"column": "source_id"}, [0, 0, 1, 1, 2, 2, 3, 3]),
                            ({"pattern": "(\\d+)"}, list(range(8))), ({"column": "file"}, list(range(8))),
                            ({"column": "subject"}, [0, 0, 0, 0, 1, 1, 1, 1])):
        listing = ImageListing(index="t.csv", image="file", label="label")
        _, plans = completed(tmp_path, own_plan(listing=listing, source="toys", group=group))
        images = read_corpus_set(plans[0], corpus, read_manifest(corpus))
        assert images.groups.tolist() == expected, group


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
