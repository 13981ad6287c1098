"""`autoseg plan --explain` and `--probe-memory`: what is shown adds up, and what is measured lands in the plan."""

import json
import math
import subprocess
import sys

import pytest
from test_training import write_dataset

from autoseg.commands import probing
from autoseg.commands.plan import plan
from autoseg.errors import UserError
from autoseg.recording import RunRecord
from autoseg.records import read_record
from autoseg.schema import Plan


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("explain") / "dataset", cases=5)


def explained(dataset, run, capsys, **options):
    capsys.readouterr()
    assert plan(dataset, run=run, workers=1, preprocess=False, **options) == 0
    return capsys.readouterr().out


def test_the_json_rows_add_up_and_follow_the_plan(dataset, tmp_path, capsys):
    content = json.loads(explained(dataset, tmp_path / "run", capsys, explain=True, json=True))
    planned = read_record(Plan, tmp_path / "run" / "plan.json")
    assert content["configurations"].keys() == planned.configurations.keys()
    for name, shown in content["configurations"].items():
        configuration = planned.configurations[name]
        network = configuration.networks[configuration.architecture]
        for amount in ("parameters", "macs", "memory_bytes"):
            assert sum(stage[amount] for stage in shown["stages"]) == shown["totals"][amount] > 0
        for stage in shown["stages"]:
            assert [size * step for size, step in zip(stage["shape"], stage["stride"], strict=True)] == list(
                network.patch_shape
            )
            assert stage["spacing"] == pytest.approx(
                [size * step for size, step in zip(configuration.spacing, stage["stride"], strict=True)]
            )
            assert stage["tokens"] in (None, math.prod(stage["shape"]))


def test_the_table_comes_after_the_summary_and_only_when_asked(dataset, tmp_path, capsys):
    plain = explained(dataset, tmp_path / "run", capsys, architecture="hybrid")
    assert "Stages of" not in plain
    table = explained(dataset, tmp_path / "run", capsys, architecture="hybrid", explain=True)
    assert table.index("Planned for") < table.index("Stages of 3d_fullres, hybrid") < table.index("Next: autoseg train")
    assert "attention" in table and "GiB" in table and "MACs" in table
    lines = table[table.index("Stages of 3d_fullres") :].splitlines()
    assert all(len(line) < 160 for line in lines)


def test_several_networks_are_named_beside_the_next_step(dataset, tmp_path, capsys):
    assert "--architecture" not in explained(dataset, tmp_path / "run", capsys, architecture="resenc")
    second = explained(dataset, tmp_path / "run", capsys, architecture="plain")
    assert "Next: autoseg train" in second
    assert "--architecture" in second.splitlines()[-2] and "resenc, plain" in second.splitlines()[-2]


# ---------------------------------------------------------------- measured memory
def test_a_probed_cpu_stands_in_the_plan_and_in_the_record(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    explained(dataset, run, capsys, probe_memory=True, device="cpu", memory_gib=1.0, configurations="3d_fullres",
              architecture="plain")
    planned = read_record(Plan, run / "plan.json").configurations["3d_fullres"]
    network = planned.networks[planned.architecture]
    assert network.memory_measured_on == "cpu"
    assert 0 < network.memory_gib <= 1.0
    record = read_record(RunRecord, run / "run.json")
    assert record.device == "cpu" and record.results["memory_probes"] >= 1 and "torch" in record.versions


def test_nothing_is_measured_unless_asked_on_a_machine_without_gpu(monkeypatch):
    monkeypatch.setattr(probing, "has_gpu_driver", lambda: False)
    assert probing.device_to_probe("auto", None, False) is None
    assert probing.device_to_probe("cpu", None, False) is None
    assert str(probing.device_to_probe("cpu", True, False)) == "cpu"
    assert probing.device_to_probe("cpu", False, False) is None


def test_a_gpu_is_measured_unless_declined(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(probing, "has_gpu_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert probing.device_to_probe("auto", None, False) == torch.device("cuda")
    assert probing.device_to_probe("cuda", None, False) == torch.device("cuda")
    assert probing.device_to_probe("auto", None, True) is None
    assert probing.device_to_probe("auto", True, True) == torch.device("cuda")
    assert probing.device_to_probe("cuda", False, False) is None


def test_cuda_that_is_absent_is_refused_whatever_is_measured(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for asked in (None, True, False):
        with pytest.raises(UserError, match="--device cuda"):
            probing.device_to_probe("cuda", asked, False)


def test_planning_alone_imports_no_torch(dataset, tmp_path):
    code = ("import sys; from pathlib import Path\n"
            "from autoseg.commands import probing; probing.has_gpu_driver = lambda: False\n"
            "from autoseg.commands.plan import plan\n"
            f"assert plan(Path({str(dataset)!r}), run=Path({str(tmp_path / 'run')!r}), workers=1) == 0\n"
            "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
