"""The shells of both commands: fast help without torch, exit statuses, and a wheel that carries its presets."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import model_info, write_fold, write_nifti

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


def run_without(packages, *arguments, **options):
    """`autoseg` with these arguments, which ends well and imports none of the packages."""
    code = (f"import sys; sys.argv = {['autoseg', *arguments]!r}\n"
            "from autoseg.__main__ import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
            f"imported = {packages!r} & set(sys.modules)\n"
            "assert not imported, imported")
    done = run("-c", code, **options)
    assert done.returncode == 0, done.stderr
    return done


def test_help_needs_no_torch_and_little_time():
    heavy = {"torch", "monai", "SimpleITK", "matplotlib", "transformers", "open_clip", "nibabel", "scipy"}
    start = time.perf_counter()
    done = run_without(heavy, "--help")
    seconds = time.perf_counter() - start
    assert all(command in done.stdout for command in ("plan", "pretrain-init", "train", "predict", "evaluate", "demo"))
    assert seconds < 3, "help takes 0.2 s on an idle machine"


def test_a_prediction_waits_for_no_package_that_it_does_not_need(tmp_path):
    write_fold(tmp_path / "run", model_info())
    write_nifti(tmp_path / "images" / "case_0000.nii.gz")
    slow = {"sympy", "blosc2", "monai", "matplotlib", "scipy.spatial", "transformers"}
    run_without(slow, "predict", "-i", "images", "-o", "masks", "--run", "run", "--device", "cpu", cwd=tmp_path)
    assert (tmp_path / "masks" / "case.nii.gz").exists()


@pytest.mark.parametrize("command", ["plan", "pretrain-init", "train", "predict", "evaluate", "demo"])
def test_every_command_explains_itself(command):
    done = run("-m", "autoseg", command, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


@pytest.mark.parametrize("arguments", [
    ("train", "--text-guided"), ("find-best",), ("plan",), ("train", "--fold"), ("predict", "--speed", "fast"),
])
def test_what_does_not_exist_yet_is_refused_with_status_2(arguments, tmp_path):
    done = run("-m", "autoseg", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_vlm_has_a_shell():
    assert "autoseg" in run("-m", "vlm.cli", "--help").stdout
    assert run("-m", "vlm.cli", "train").returncode == 2


def test_a_wheel_installed_elsewhere_finds_its_presets(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("autoseg", "vlm", "presets", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    built = run("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "wheels"),
                str(source))
    assert built.returncode == 0, built.stderr
    [wheel] = (tmp_path / "wheels").glob("*.whl")
    target = tmp_path / "elsewhere"
    installed = run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel))
    assert installed.returncode == 0, installed.stderr
    code = (f"import sys; sys.path.insert(0, {str(target)!r}); import autoseg\n"
            f"assert {str(target)!r} in autoseg.__file__\n"
            "from autoseg.training.settings import preset_names, load_preset\n"
            "print(preset_names()); load_preset('quick')\n"
            "from importlib import resources\n"
            "print([entry.name for entry in (resources.files('presets') / 'protocols').iterdir()])")
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "default" in done.stdout and "quick" in done.stdout and "btcv-unetr.toml" in done.stdout
