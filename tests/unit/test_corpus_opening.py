"""Text files of strangers are read as UTF-8 or refused with the place; no path leaves its root."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import UserError
from vlm.corpus.readers.opening import column_positions, csv_rows, first_group, open_text, safe_relative, told_or_found


@given(st.text(alphabet="ab./\\: \0", max_size=12))
def test_a_safe_path_stays_below_its_root(path: str) -> None:
    safe = safe_relative(path)
    if safe is not None:
        root = Path("/the/root")
        assert (root / safe).resolve().is_relative_to(root)
        assert (root / safe).resolve() != root


@pytest.mark.parametrize("path", ["", ".", "/etc/passwd", "../x.png", "a/../../x.png", "C:\\x.png", "c:x.png", "a\0b",
                                  "\\\\server\\x.png", "images/.."])
def test_paths_that_leave_the_root_are_none(path: str) -> None:
    assert safe_relative(path) is None


def test_paths_of_lists_made_elsewhere_become_posix_paths() -> None:
    assert safe_relative("CT\\lung\\1.png") == "CT/lung/1.png"
    assert safe_relative(" ./a//b.png ") == "a/b.png"
    assert safe_relative("x..y/a.png") == "x..y/a.png"


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_is_the_same_with_a_mark_or_compressed(tmp_path: Path, name: str, mark: bytes) -> None:
    content = mark + "file,größe\r\nä.png,1\r\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with open_text(tmp_path / name) as lines:
        assert list(lines) == ["file,größe\r\n", "ä.png,1\r\n"]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_byte_that_is_not_utf8_is_named_by_line_and_offset(tmp_path: Path, name: str) -> None:
    before = b"file,label\n" + b"x.png,fine\n" * 5000
    content = before + "y.png,café\n".encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UserError, match=rf"line 5002: byte {len(before) + 9} \(0xe9\) is not UTF-8") as caught, \
            open_text(tmp_path / name) as lines:
        list(lines)
    assert str(tmp_path / name) in str(caught.value)


def test_utf16_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("file,label\n".encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16"), open_text(tmp_path / "a.csv") as lines:
        list(lines)


def test_a_compressed_file_that_was_cut_off_is_said_to_be(tmp_path: Path) -> None:
    whole = gzip.compress(bytes(range(32, 127)) * 5000)
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.csv.gz").write_bytes(b"this was never compressed")
    for name in ("cut.csv.gz", "none.csv.gz"):
        with pytest.raises(UserError, match=r"damaged or cut off"), open_text(tmp_path / name) as lines:
            list(lines)


def test_an_absent_file_and_a_folder_are_errors_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"), open_text(tmp_path / "none.csv"):
        pass
    with pytest.raises(UserError, match="cannot be read"), open_text(tmp_path):
        pass


def rows_of(path: Path, text: str) -> list[list[str]]:
    path.write_text(text, encoding="utf-8", newline="")
    with open_text(path) as lines:
        return list(csv_rows(lines, ",", path))


def test_a_quoted_field_may_hold_line_ends_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    text = 'a,b\r\n\r\n1,"two\nlines, and ""quotes"""\n3,4'
    assert rows_of(tmp_path / "a.csv", text) == [["a", "b"], ["1", 'two\nlines, and "quotes"'], ["3", "4"]]


def test_a_quote_that_never_closes_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 3: a quotation mark"):
        rows_of(tmp_path / "a.csv", 'a,b\n1,2\n3,"four\n5,6\n7,8\n')
    with pytest.raises(UserError, match=r"line 2: a quotation mark"):
        rows_of(tmp_path / "b.csv", 'a,b\n1,"' + "long text\n" * 20_000)


def test_missing_columns_are_named_together_with_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no column image, 7\.\nIts columns: file, label\.") as caught:
        column_positions(Path("x.csv"), ["file", "label"], ["label", "image", 7], ",")
    assert str(caught.value).startswith("x.csv")


@pytest.mark.parametrize("written", [";", "\t", "|"])
def test_another_delimiter_is_recognized(written: str) -> None:
    with pytest.raises(UserError, match=r"separated by .*, not by a comma") as caught:
        column_positions(Path("x.csv"), [written.join(["file", "label", "age"])], ["file", "label"], ",")
    assert repr(written) in str(caught.value)
    with pytest.raises(UserError, match=r"separated by"):
        column_positions(Path("x.csv"), [written.join(["file", "label", "age"])], [0, 2], ",")
    with pytest.raises(UserError, match=r"no column 3"):
        column_positions(Path("x.csv"), [written.join(["file", "label", "age"])], [0, 3], ",")


def test_positions_follow_the_header_whatever_its_order() -> None:
    assert column_positions(Path("x.csv"), ["b ", "c", "a"], ["a", "b", 1], ",") == (2, 0, 1)
    with pytest.raises(UserError, match="a stands there twice"):
        column_positions(Path("x.csv"), ["a", "a", "b"], ["a"], ",")


def test_groups_come_from_the_column_or_else_from_the_path() -> None:
    assert first_group(r"p(\d+)", "x/p12/1.png") == "12"
    assert first_group(r"p(\d*)", "p") is None
    assert told_or_found(r"p(\d+)", None, "p7/1.png") == "7"
    assert told_or_found(r"p(\d+)", "nothing", "p7/1.png") is None
    assert told_or_found(None, "anna", "p7/1.png") == "anna"
    assert told_or_found(None, "", "p7/1.png") is None
