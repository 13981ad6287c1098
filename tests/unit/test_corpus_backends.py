"""Choosing a caption backend, what a model is asked, and how its answer is read."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import UserError
from vlm.corpus.captions.backends import GrammarWriter, make_writer
from vlm.corpus.captions.cache import CachedWriter
from vlm.corpus.captions.checks import check_caption
from vlm.corpus.captions.prompting import ANSWER_SCHEMA, CaptionAnswer, NoCaptions, opening, parse_captions, prompt_text
from vlm.corpus.captions.tables import Label, LabelTable
from vlm.corpus.rows import LabelSet

CHEST = LabelSet("X-ray", ("pneumonia",), ("edema",), ("pneumothorax",), "chest", "frontal")


def test_the_grammar_writes_templates_that_pass_the_checks():
    captions = GrammarWriter().write(LabelSet("X-ray", ("pneumonia",), anatomy="chest"), None, 10)
    assert len(captions) == 10
    assert {(caption.kind, caption.origin) for caption in captions} == {("template", "grammar 1")}
    assert GrammarWriter.name == "grammar 1"


def test_the_writer_is_chosen_by_name(tmp_path):
    cache_file = tmp_path / "captions.jsonl"
    assert isinstance(make_writer("grammar", cache_file), GrammarWriter)
    endpoint = make_writer("endpoint", cache_file, endpoint="http://localhost:1/v1", model="big")
    assert isinstance(endpoint, CachedWriter) and endpoint.name == "endpoint big"
    assert not cache_file.exists()


@pytest.mark.parametrize(("kind", "options", "told"), [
    ("endpoint", {}, ("--endpoint is missing", "--caption-model is missing")),
    ("endpoint", {"endpoint": "http://localhost/v1"}, ("--caption-model is missing",)),
    ("endpoint", {"endpoint": "file:///etc/passwd", "model": "m"}, ("http:// or https://",)),
    ("endpoint", {"endpoint": "http://localhost/v1", "model": "m", "timeout_seconds": 0.0}, ("0 s", "positive")),
    ("endpoint", {"endpoint": "http://localhost/v1", "model": "m", "key_file": Path("nowhere")}, ("nowhere",)),
    ("local", {}, ("--caption-model is missing", "folder")),
    ("local", {"model": "nowhere", "endpoint": "http://localhost/v1"}, ("--endpoint has no effect",)),
    ("local", {"model": "nowhere"}, ("nowhere is no folder",)),
    ("grammar", {"model": "m", "endpoint": "x", "key_file": Path("k")},
     ("--caption-model has no effect", "--endpoint has no effect", "--key-file has no effect")),
])
def test_options_that_do_not_fit_are_told_together(tmp_path, kind, options, told):
    with pytest.raises(UserError) as raised:
        make_writer(kind, tmp_path / "captions.jsonl", **options)
    assert all(part in str(raised.value) for part in told)


def test_the_prompt_says_all_that_is_known_and_nothing_else():
    text = prompt_text(opening(CHEST, None, 10)).lower()
    facts = ("x-ray", "pneumonia", "edema", "pneumothorax", "chest", "frontal", "10 captions")
    assert all(fact in text for fact in facts)
    bare = prompt_text(opening(LabelSet("CT"), None, 3)).lower()
    assert "ct" in bare and "nothing is known" in bare
    assert not any(word in bare for word in ("uncertain", "present", "absent", "anatomy", "view:", "none\n"))


label = st.sampled_from(["tumor", "edema", "cyst", "gliosis", "infarct"])


@given(present=st.lists(label, max_size=3), uncertain=st.lists(label, max_size=3), absent=st.lists(label, max_size=3))
def test_different_label_sets_have_different_prompts(present, uncertain, absent):
    def prompt(*parts):
        return prompt_text(opening(LabelSet("MRI", *map(tuple, parts)), None, 10))

    base, others = (present, uncertain, absent), [(uncertain, absent, present), (absent, present, uncertain)]
    for other in others:
        assert (prompt(*base) == prompt(*other)) == (base == other)


def test_the_schema_is_that_of_the_answer():
    made = CaptionAnswer.model_json_schema()
    assert list(made["properties"]) == list(ANSWER_SCHEMA["properties"])
    assert made["required"] == ANSWER_SCHEMA["required"]
    assert made["properties"]["captions"]["items"] == ANSWER_SCHEMA["properties"]["captions"]["items"]


WRAPPINGS = ["{}", "```json\n{}\n```", "<think>Maybe {{\"captions\": [\"a draft\"]}}? No.</think>{}", "Sure! {{}} {}",
             "{{\"note\": \"x\", \"answer\": {}}}", "{}\nI hope this helps {{smile}}.", "{{ {{ {}"]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=5), escaped=st.booleans())
def test_captions_are_found_in_whatever_is_put_around_them(wrapping, texts, escaped):
    answer = json.dumps({"captions": texts, "more": 1}, ensure_ascii=escaped)
    assert parse_captions(wrapping.format(answer)) == tuple(texts)


def test_an_object_inside_the_answer_is_no_answer():
    assert parse_captions('{"captions": ["an MRI"], "draft": {"captions": ["a CT"]}} {}') == ("an MRI",)


@given(st.text() | st.text("{}[]\":,captions 1\\u"))
def test_any_other_answer_holds_no_captions(text):
    try:
        assert all(isinstance(caption, str) for caption in parse_captions(text))
    except NoCaptions as error:
        assert error.answer == text


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"captions": []}', '{"captions": [1]}', '{"captions": null}',
                                  '["Chest X-ray"]', '{"captions": ["cut o', "[" * 100_000, '{"a":' * 100_000,
                                  "{" * 1_000_000])
def test_answers_of_another_structure_are_refused(text):
    with pytest.raises(NoCaptions):
        parse_captions(text)


TABLE = LabelTable(name="toy", title="", anatomy="brain", labels={
    "GLIOMA_3": Label(phrases=("a glioma",), also=("glial tumor",)),
    "WMH": Label(plurals=("white matter lesions",), anatomy="head"),
    "none": Label(kind="normal"),
})


def test_labels_are_put_into_the_table_s_words():
    text = prompt_text(opening(LabelSet("MRI", ("GLIOMA_3",), ("WMH",)), TABLE, 3))
    assert "a glioma" in text and "white matter lesions" in text and "brain" in text
    assert "GLIOMA_3" not in text and "WMH" not in text


@pytest.mark.parametrize(("labels", "anatomy"), [
    (LabelSet("MRI", ("WMH",), anatomy="orbit"), "orbit"), (LabelSet("MRI", ("WMH",)), "head"),
    (LabelSet("MRI", ("none",)), "brain"), (LabelSet("MRI"), "brain"),
])
def test_anatomy_comes_from_the_source_the_label_or_the_table(labels, anatomy):
    assert f"- Anatomy: {anatomy}\n" in prompt_text(opening(labels, TABLE, 3))


def test_what_is_asked_for_can_pass_the_checks():
    fine = "Frontal chest X-ray showing pneumonia, possible edema and no pneumothorax."
    assert check_caption(fine, CHEST, None) is None
