"""Publications' figures and fundus images as UniMed lists them: articles, domains, streamed JSON, keywords."""

import json
from pathlib import Path

import pytest
from corpus_published_layouts import (
    alignment,
    cards,
    den,
    instruct,
    layout_of,
    pmc_published,
    retina,
    roco_published,
    rows_of,
    sound,
    write,
)

from autoseg.errors import UserError
from vlm.corpus.readers import json_streams, read_source
from vlm.corpus.readers.retina import den_captions
from vlm.corpus.rows import Reject, SourceRow


def test_articles_of_different_sources_are_called_alike(tmp_path: Path) -> None:
    """The same article in PMC-OA, ROCOv2 and LLaVA-Med has one name, where a file tells it."""
    [pmc] = sound(rows_of("pmc_oa", "published", pmc_published, tmp_path / "pmc"))
    train, valid, test = sound(rows_of("roco", "published", roco_published, tmp_path / "roco"))
    known, unknown = sound(rows_of("llava_med_alignment", "unimed_with_articles", alignment, tmp_path / "llava"))
    [_, plain] = sound(rows_of("llava_med_instruct", "published", instruct, tmp_path / "instruct"))

    assert pmc.article == train.article == "PMC212319"
    assert (valid.article, test.article) == (None, "PMC4")
    assert (train.split, valid.split, test.split) == ("train", "val", "test")
    assert (known.article, unknown.article, plain.article) == ("PMC5201076", "1", "28104940")


def test_llava_modality_is_the_only_domain(tmp_path: Path) -> None:
    first, second = sound(rows_of("llava_med_alignment", "unimed", alignment, tmp_path))

    assert (first.modality, second.modality) == ("CT", "mixed")
    assert first.captions[0].text == "A CT of the head."


def test_caption_and_mention_are_on_one_row(tmp_path: Path) -> None:
    first, second = sound(rows_of("llava_med_instruct", "published", instruct, tmp_path))

    assert [caption.origin for caption in second.captions] == ["fig_caption", "in_text_mention"]
    assert len(first.captions) == 1
    assert (first.modality, second.modality, second.image) == ("X-ray", "MRI", "28104940_F2.jpg")


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_streamed_json_equals_what_is_loaded_at_once(chunk: int, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_streams, "CHUNK", chunk)
    content = {"a": [{"x": [1, 2, {"y": "é\" ] }"}]}, 12345, None], "b": [], "c": [{"z": "\n"}]}
    write(tmp_path / "lists.json", json.dumps(content, indent=2))
    write(tmp_path / "list.json", content["a"])

    streamed = list(json_streams.streamed_objects(tmp_path / "lists.json"))

    assert streamed == [(key, element) for key, elements in content.items() for element in elements]
    assert [element for _, element in json_streams.streamed_objects(tmp_path / "list.json")] == content["a"]


@pytest.mark.parametrize("text", [
    "", "3", '[{"a": 1}', '[{"a": 1} {"b": 2}]', '[{"a": }]', '{"a": {"b": 1}}', '{"a": [1], 3: [2]}', '[{"a": "cut'])
def test_broken_json_is_refused_with_its_place(text: str, tmp_path: Path) -> None:
    write(tmp_path / "broken.json", text)

    with pytest.raises(UserError, match=r"broken\.json is not the JSON that was expected, at character \d+"):
        list(json_streams.streamed_objects(tmp_path / "broken.json"))


def test_broken_entries_of_llava_are_named(tmp_path: Path) -> None:
    instruct(tmp_path)
    write(tmp_path / "llava_med_instruct_fig_captions.json", {
        "mri": ["text", {"fig_caption": "No id."}, {"pair_id": "../x", "fig_caption": "Outside."}, {"pair_id": "2_F1"}],
        "gross": [{"pair_id": "3_F1", "fig_caption": "A liver.", "in_text_mention": [{"tokens": ["See", "it"]}]}]})
    card = cards()["llava_med_instruct"]

    *rejects, last = read_source(card, layout_of(card, "published"), tmp_path)

    assert [isinstance(row, Reject) for row in rejects] == [True] * 4
    assert isinstance(last, SourceRow) and last.row == 4 and last.modality == "mixed"
    write(tmp_path / "llava_med_image_urls.jsonl", "{broken\n")
    with pytest.raises(UserError, match="line 1 is not JSON"):
        list(read_source(card, layout_of(card, "published_with_articles"), tmp_path))


def test_fundus_captions_and_the_sentence(tmp_path: Path) -> None:
    [row] = sound(rows_of("idrid", "unimed", retina, tmp_path))

    assert len(row.captions) == 11 and row.captions[-1].origin == "column sentence_level_captions"
    assert {caption.kind for caption in row.captions} == {"template"}


def test_deepeyenet_leaves_out_ages_and_dates(tmp_path: Path) -> None:
    first, second = rows_of("deepeyenet", "unimed", den, tmp_path)

    assert isinstance(first, SourceRow) and isinstance(second, Reject)
    assert [caption.text for caption in first.captions] == [
        "The fundus image of Drusen at the macula.", "The fundus image of drusen."]
    assert den_captions(["OD", "//", "3", ""], "") == ()


def test_a_broken_line_of_pmc_does_not_stop_the_rest(tmp_path: Path) -> None:
    pmc_published(tmp_path)
    index = tmp_path / "pmc_oa.jsonl"
    good = index.read_text()
    index.write_text(good + '{"image": "PMC1_Fig1_1.jpg", "caption": "cut\n' + good)
    card = cards()["pmc_oa"]

    first, broken, last = read_source(card, layout_of(card, "published"), tmp_path)

    assert isinstance(broken, Reject) and broken.row == 1
    assert isinstance(first, SourceRow) and isinstance(last, SourceRow) and last.row == 2
