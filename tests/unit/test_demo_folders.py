"""The demo replaces only what a demo wrote."""

import pytest

from autoseg.commands.demo import DemoFolders, clear_earlier_demo
from autoseg.errors import UserError
from autoseg.recording import recorded


def test_an_earlier_demo_is_removed_and_a_new_folder_is_fine(tmp_path):
    folders = DemoFolders(tmp_path / "demo")
    clear_earlier_demo(folders)
    for folder in (folders.dataset, folders.run / "models", folders.masks):
        folder.mkdir(parents=True)
    folders.picture.write_bytes(b"")
    with recorded("demo", folders.root):
        pass
    clear_earlier_demo(folders)
    assert [path.name for path in folders.root.iterdir()] == ["run.json"]
    clear_earlier_demo(folders)


@pytest.mark.parametrize("with_dataset", [False, True])
def test_a_folder_with_anything_else_is_refused_and_untouched(tmp_path, with_dataset):
    folders = DemoFolders(tmp_path)
    (folders.run / "models").mkdir(parents=True)
    if with_dataset:
        folders.dataset.mkdir(parents=True)
        (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="thesis.txt" if with_dataset else "run"):
        clear_earlier_demo(folders)
    assert (folders.run / "models").is_dir()
