"""Source cards are checked together; what lies on the disk is told from what does not."""

import json
import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from autoseg.errors import UserError
from vlm.commands import sources as sources_command
from vlm.commands.sources import sources
from vlm.corpus.registry import (
    checked_cards,
    choose_layout,
    layout_status,
    load_cards,
    missing_files,
    read_card,
    status_of,
    with_own_cards,
)
from vlm.schema import SourceCard

MINIATURE = Path(__file__).resolve().parents[3] / "shared" / "data" / "vlm"
"""Sources with a layout `miniature` and their folders there."""

CARD = """
name = "{name}"
title = "Two layouts of one source"
modalities = ["X-ray"]
access = "open"
licence = "CC BY 4.0"
citation = "Nobody N. Nothing. Nowhere, 2020."
obtain = "Ask nobody."
folder = "Source"
{more}

[[layouts]]
name = "published"
reader = "image_folders"
image_root = "set"
splits = {{ "train" = "train", "test" = "test", "extra" = "" }}

[[layouts]]
name = "listed"
reader = "table"
index = ["list.csv"]
image_root = "images"
columns = {{ image = "file", label = "label" }}
"""


def card_named(name: str, more: str = "") -> SourceCard:
    return SourceCard.model_validate(tomllib.loads(CARD.format(name=name, more=more)))


def lay_table(folder: Path, rows: int = 3, images: int = 3, header: str = "file,label") -> None:
    (folder / "images").mkdir(parents=True)
    lines = [header, *(f"{number}.png,mass" for number in range(rows))]
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number in range(images):
        (folder / "images" / f"{number}.png").write_bytes(b"")


def test_every_card_of_the_package_is_right_and_they_are_sorted() -> None:
    cards = load_cards()
    files = [file.name for file in (resources.files("presets") / "vlm" / "sources").iterdir()]
    assert list(cards) == sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))
    assert all(card.name == name for name, card in cards.items())


def test_no_two_sources_of_the_package_share_a_title_or_hide_behind_each_other() -> None:
    cards = load_cards().values()
    assert len({card.title for card in cards}) == len(cards)
    for card in cards:
        assert card.obtain.strip() and card.licence.strip() and card.citation.strip(), card.name
        assert not Path(card.folder).is_absolute() and ".." not in Path(card.folder).parts, card.name


def test_all_wrong_cards_are_reported_together() -> None:
    good = CARD.format(name="one", more="")
    texts = [
        (Path("one.toml"), good),
        (Path("two.toml"), good),
        (Path("three.toml"), CARD.format(name="three", more='label_table = "no_such_table"')),
        (Path("four.toml"), CARD.format(name="four", more='colour = "red"')),
        (Path("five.toml"), "name = "),
    ]
    with pytest.raises(UserError) as caught:
        checked_cards(texts)
    message = str(caught.value)
    assert "two.toml: its card is called one" in message and "another card is called one already" in message
    assert "three.toml" in message and "no_such_table.toml does not exist" in message
    assert "four.toml" in message and "colour" in message
    assert "five.toml is not valid TOML" in message
    assert list(checked_cards([(Path("b.toml"), CARD.format(name="b", more="")),
                               (Path("a.toml"), CARD.format(name="a", more=""))])) == ["a", "b"]


def test_cards_of_ones_own_join_unless_a_name_is_taken(tmp_path: Path) -> None:
    cards = {"a": card_named("a")}
    for file, name in (("x.toml", "b"), ("y.toml", "a"), ("z.toml", "b")):
        (tmp_path / file).write_text(CARD.format(name=name, more=""), encoding="utf-8")
    assert list(with_own_cards(cards, [tmp_path / "x.toml"])) == ["a", "b"]
    with pytest.raises(UserError) as caught:
        with_own_cards(cards, [tmp_path / file for file in ("x.toml", "y.toml", "z.toml")])
    assert "y.toml: a is already the name of a preset" in str(caught.value)
    assert "z.toml: b is already the name of " + str(tmp_path / "x.toml") in str(caught.value)


@pytest.mark.parametrize(("field", "said"), [
    ('delimiter = ";;"', "delimiter of its layout listed is ';;'"), ('delimiter = ""', "one character was expected"),
    ('label_separator = ""', "label_separator of its layout listed is empty"),
    ('columns = { image = -1 }', "names column -1"),
])
def test_a_field_that_no_reader_could_use_is_an_error_of_the_user(tmp_path: Path, field: str, said: str) -> None:
    text = CARD.format(name="a", more="").replace('columns = { image = "file", label = "label" }', field)
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.toml: .*" + re.escape(said)):
        read_card(tmp_path / "a.toml")


def test_a_card_file_that_cannot_be_used_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes('title = "é"'.encode("latin-1"))
    (tmp_path / "table.toml").write_text(CARD.format(name="t", more='label_table = "none_such"'), encoding="utf-8")
    for file, said in (("none.toml", "does not exist"), ("latin.toml", "not text"), ("table.toml", "none_such")):
        with pytest.raises(UserError, match=said) as caught:
            read_card(tmp_path / file)
        assert file in str(caught.value)


def test_the_first_layout_that_is_whole_is_chosen(tmp_path: Path) -> None:
    card = card_named("a")
    with pytest.raises(UserError, match="no folder") as caught:
        choose_layout(card, tmp_path / "Source")
    assert "Ask nobody." in str(caught.value)
    lay_table(tmp_path / "Source")
    assert choose_layout(card, tmp_path / "Source").name == "listed"
    (tmp_path / "Source" / "set" / "train" / "mass").mkdir(parents=True)
    assert missing_files(card, card.layouts[0], tmp_path / "Source") == ("set/test/",)
    (tmp_path / "Source" / "set" / "test").mkdir()
    assert missing_files(card, card.layouts[0], tmp_path / "Source") == ("image below set/",)
    (tmp_path / "Source" / "set" / "train" / "mass" / "1.png").write_bytes(b"")
    assert choose_layout(card, tmp_path / "Source").name == "published"


def test_what_each_layout_lacks_is_said(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError) as caught:
        choose_layout(card_named("a"), tmp_path)
    assert "layout published: no set/\n" in str(caught.value)
    assert "layout listed: no list.csv" in str(caught.value)


@pytest.mark.parametrize(("rows", "images", "header", "state", "found"), [
    (3, 3, "file,label", "complete", (3, 3)),
    (300, 300, "file,label", "complete", (200, 200)),
    (3, 1, "file,label", "images missing", (3, 1)),
    (300, 250, "file,label", "complete", (200, 200)),
    (3, 3, "path,label", "unreadable", (0, 0)),
    (0, 3, "file,label", "unreadable", (0, 0)),
])
def test_the_state_of_a_source(
    tmp_path: Path, rows: int, images: int, header: str, state: str, found: tuple[int, int]
) -> None:
    lay_table(tmp_path, rows, images, header)
    status = status_of(card_named("a"), tmp_path)
    assert (status.state, (status.looked_at, status.found)) == (state, found)
    assert status_of(card_named("a"), tmp_path / "none").state == "absent"


def test_a_missing_column_is_found_even_before_the_images_are_there(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path;label\n1.png;x\n", encoding="utf-8")
    card = card_named("a")
    found = layout_status(card, card.layouts[1], tmp_path)
    assert found.missing == ("images/",) and "no column file" in found.problem


def test_members_of_tars_are_looked_for_by_their_tar(tmp_path: Path) -> None:
    lay_table(tmp_path, rows=0)
    (tmp_path / "list.csv").write_text("file,label\na.tar!1.jpg,x\nb.tar!1.jpg,x\n", encoding="utf-8")
    (tmp_path / "images" / "a.tar").write_bytes(b"")
    status = status_of(card_named("a"), tmp_path)
    assert (status.looked_at, status.found) == (2, 1)


def test_an_image_whose_name_no_disk_can_hold_is_missing(tmp_path: Path) -> None:
    lay_table(tmp_path, rows=1)
    with (tmp_path / "list.csv").open("a", encoding="utf-8") as stream:
        stream.write(f"{'x' * 300}.png,mass\n")
    status = status_of(card_named("a"), tmp_path)
    assert (status.state, status.looked_at, status.found) == ("images missing", 2, 1)


def shown(capsys: pytest.CaptureFixture[str], *args: Any, **options: Any) -> str:
    assert sources(*args, **options) == 0
    return capsys.readouterr().out


@pytest.fixture
def three_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """One source that is whole, one without images, one that is not there; the folder below which they lie."""
    cards = {name: card_named(name).model_copy(update={"folder": name}) for name in ("first", "second", "third")}
    monkeypatch.setattr(sources_command, "load_cards", lambda: cards)
    lay_table(tmp_path / "first")
    lay_table(tmp_path / "second", images=1)
    return tmp_path


def test_the_list_names_every_source_and_its_state(three_cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line.split()[0]: line for line in shown(capsys, data=three_cards).splitlines() if line}
    assert "complete, layout listed" in lines["first"]
    assert "images missing" in lines["second"] and "1 of the first 3" in lines["second"]
    assert lines["third"].endswith("absent")
    assert "on this disk" not in shown(capsys)
    listed = json.loads(shown(capsys, data=three_cards, json=True))["sources"]
    assert {one["name"]: one["status"]["state"] for one in listed} == {
        "first": "complete", "second": "images missing", "third": "absent"}


def test_one_source_is_told_with_what_is_missing(three_cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, "first", path=three_cards / "first")
    for needed in ("Ask nobody.", "CC BY 4.0", "Nobody N.", "file, label", "missing   set/", "missing   nothing"):
        assert needed in told, needed
    by_data = json.loads(shown(capsys, "first", data=three_cards, json=True))
    assert by_data == json.loads(shown(capsys, "first", path=three_cards / "first", json=True))
    assert by_data["layouts"]["listed"] == {"missing": [], "problem": ""}
    assert "missing" not in shown(capsys, "first")


@pytest.mark.parametrize(("args", "options", "said"), [
    (("frist",), {}, "Did you mean first"),
    ((), {"path": Path("x")}, "no source is named"),
    (("first",), {"path": Path("x"), "data": Path("y")}, "Give one of them"),
    ((), {"data": Path("no/such/folder")}, "is no folder"),
])
@pytest.mark.usefixtures("three_cards")
def test_wrong_questions_are_answered(args: Sequence[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sources(*args, **options)


def test_every_real_miniature_is_complete() -> None:
    if not MINIATURE.is_dir():
        pytest.skip("the real miniature sources are not on this machine")
    cards = [card for card in load_cards().values() if card.layouts[-1].name == "miniature"]
    assert len(cards) == 12
    for card in cards:
        status = status_of(card, MINIATURE / card.folder)
        assert (status.state, status.layout) == ("complete", "miniature"), card.name
