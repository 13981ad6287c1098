"""Domain generalization and text guidance: interrupted and continued, and refusals before anything is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.numpy
from test_domain_generalization import info_of, preset, thin, write_twins

from autoseg.commands import fold_training as command
from autoseg.commands.plan import plan
from autoseg.commands.train import train
from autoseg.errors import UserError
from autoseg.training.session import Session, train_session

METHODS = [
    {"domain_generalization": "gin"},
    {"domain_generalization": "slaug", "text_guided": True},
    {"domain_generalization": "ccsdg", "text_guided": True, "text_geometry": "learned"},
]
STEPS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resumed")
    dataset, _ = write_twins(folder, cases=3)
    for architecture in ("unetr", "plain"):
        assert plan(dataset, run=folder / "run", configurations="2d", workers=1, architecture=architecture,
                    device="cpu") == 0
    thin(folder / "run/plan.json")
    return folder / "run"


def asked(run: Path, folder: Path, name: str) -> dict[str, object]:
    return {"run": run, "device": "cpu", "preset": preset(folder, 2), "steps_per_epoch": STEPS, "fold": "all",
            "name": name}


def tensors(run: Path, name: str, file: str) -> dict[str, object]:
    return safetensors.numpy.load_file(run / f"models/{name}/2d/fold_all/{file}")


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    def stopped(session: Session, resume: bool, _: object) -> object:
        return train_session(session, resume, lambda done: done == steps)

    monkeypatch.setattr(command, "train_session", stopped)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["domain_generalization"])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, object]
) -> None:
    kind = str(method["domain_generalization"])
    whole, parts = asked(run, tmp_path, f"{kind}-whole"), asked(run, tmp_path, f"{kind}-parts")
    assert train(**whole, **method) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, STEPS + 1)
        with pytest.raises(UserError, match="--resume"):
            train(**parts, **method)
    # Without the switches and the preset: what was begun is continued.
    again = {key: parts[key] for key in ("run", "device", "fold", "name")}
    assert train(**again, resume=True) == 0
    files = ["weights.safetensors", *(["guidance.safetensors"] if "text_guided" in method else [])]
    for file in files:
        one, other = (tensors(run, f"{kind}-{which}", file) for which in ("whole", "parts"))
        assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    for which in ("whole", "parts"):
        record = json.loads((run / f"models/{kind}-{which}/2d/fold_all/model.json").read_text())
        assert record["steps"] == 2 * STEPS and record["training"]["domain_generalization"] == kind


@pytest.mark.parametrize(("change", "option"), [
    ({"domain_generalization": "slaug"}, "--domain-generalization"),
    ({"domain_generalization": "none"}, "--domain-generalization"),
    ({"text_guided": True}, "--text-guided"),
])
def test_resuming_by_another_method_is_refused_and_names_the_option(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], option: str
) -> None:
    begun = asked(run, tmp_path, "begun")
    if not (run / "models/begun").exists():
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            with pytest.raises(UserError, match="stopped"):
                train(**begun, domain_generalization="gin")
    before = snapshot(run / "models")
    with pytest.raises(UserError, match=f"another setting of .*{option}"):
        train(run=run, device="cpu", fold="all", name="begun", resume=True, **change)
    assert snapshot(run / "models") == before


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_ccsdg_with_a_network_without_a_first_block_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, overwrite: bool
) -> None:
    (run / "models/kept/2d/fold_all").mkdir(parents=True, exist_ok=True)
    (run / "models/kept/2d/fold_all/model.json").write_text("a finished model")
    before = snapshot(run / "models"), snapshot(run / "preprocessed")
    with pytest.raises(UserError, match="(?s)ccsdg.*unetr.*plain, resenc or hybrid"):
        train(**asked(run, tmp_path, "kept" if overwrite else "new"), architecture="unetr", overwrite=overwrite,
              domain_generalization="ccsdg")
    assert (snapshot(run / "models"), snapshot(run / "preprocessed")) == before
    assert not (run / "models/new").exists()


def test_nnunets_numbers_with_a_normalization_of_our_own_end_with_status_2(run: Path, tmp_path: Path) -> None:
    asked = ["plan", str(run.parent / "ct"), "--run", str(tmp_path / "run"), "--normalization", "rank",
             "--nnunet-parity"]
    done = subprocess.run([sys.executable, "-m", "autoseg", *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--nnunet-parity" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_record_of_a_model_says_what_normalized_its_images(run: Path, tmp_path: Path) -> None:
    named = {key: value for key, value in asked(run, tmp_path, "").items() if key != "name"} | {"fold": "0"}
    assert train(**named, normalization="percentile") == 0
    assert [one.scheme for one in info_of(run, "plain+percentile").store.normalization] == ["percentile"]
