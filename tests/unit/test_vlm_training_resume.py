"""States and journals: what is written comes back whole, and a damaged or unfinished file is told or left out."""

import json

import pytest
import torch
from torch import nn

from autoseg.errors import UserError
from vlm.training.journal import Journal, StepMetrics, read_metrics
from vlm.training.resume import Learning, load_state, read_facts, save_state


def learning(seed, average=True):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) if average else None
    return Learning(network, torch.optim.AdamW(network.parameters(), fused=True), torch.amp.GradScaler("cpu"), other)


def trained(seed):
    one = learning(seed)
    for _ in range(2):
        one.network(torch.rand(4, 2)).square().mean().backward()
        one.optimizer.step()
    return one


def test_a_state_comes_back_whole(tmp_path):
    saved, loaded = trained(0), learning(1)
    save_state(tmp_path, saved, {"state": {"step": 2}})
    load_state(tmp_path, loaded)
    assert read_facts(tmp_path) == {"state": {"step": 2}}
    for one, other in ((saved.network, loaded.network), (saved.average, loaded.average)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    for mine, other in zip(saved.network.parameters(), loaded.network.parameters(), strict=True):
        assert saved.optimizer.state[mine].keys() == loaded.optimizer.state[other].keys()
        for kind, value in saved.optimizer.state[mine].items():
            assert torch.equal(value, loaded.optimizer.state[other][kind])
    assert loaded.scaler.state_dict() == saved.scaler.state_dict()


def test_only_the_newest_state_is_kept(tmp_path):
    for step in range(3):
        save_state(tmp_path, trained(step), {"step": step})
    (tmp_path / ".state-killed.safetensors").write_bytes(b"half")
    save_state(tmp_path, trained(3), {"step": 3})
    assert len(list(tmp_path.glob("*.safetensors"))) == len(list(tmp_path.glob(".state*"))) + 1 == 1
    assert read_facts(tmp_path) == {"step": 3}


@pytest.mark.parametrize("damage", ["cut", "gone", "other network"])
def test_a_state_that_does_not_fit_is_refused(tmp_path, damage):
    save_state(tmp_path, trained(0), {})
    path = next(tmp_path.glob("state-*.safetensors"))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    if damage == "gone":
        path.unlink()
    into = learning(1)
    if damage == "other network":
        network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(3))
        into = Learning(network, torch.optim.AdamW(network.parameters()), into.scaler, into.average)
    with pytest.raises(UserError, match=r"(?s)(damaged|does not fit).*--overwrite"):
        load_state(tmp_path, into)


def test_a_journal_goes_on_after_the_saved_step(tmp_path):
    first = Journal(tmp_path, 0, {})
    for step in (10, 20, 30):
        first.add(StepMetrics(step, step / 10, float(step), loss=1.0))
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 40, "epo')  # a kill in the middle of a line
    again = Journal(tmp_path, 20, {})
    again.add(StepMetrics(25, 2.5, 25.0, loss=0.9))
    assert [line.step for line in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 25]
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line.step for line in Journal(tmp_path, 0, {})._lines] == []
