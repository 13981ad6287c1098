"""What a share of a shared training is: the same draws as of the whole batch; what torchrun's variables mean."""

import numpy as np
import pytest
import torch

from autoseg import __main__ as program
from autoseg.errors import UserError
from autoseg.launch import VARIABLES, Launch, launched
from autoseg.training.draws import DrawSettings, SampleDraw, is_forced_foreground
from autoseg.training.loop import seed_layers
from autoseg.training.objective import Objective, Step
from autoseg.training.patches import RawSample, StepReader
from autoseg.training.processes import ALONE, Processes, _buckets

TORCHRUN = dict(zip(VARIABLES, ("5", "8", "1", "4", "localhost", "29500"), strict=True))


def test_torchruns_variables_say_which_process_this_is():
    assert launched(TORCHRUN) == Launch(rank=5, world=8, local_rank=1, local_world=4)
    assert not launched(TORCHRUN).is_first


@pytest.mark.parametrize("name", VARIABLES)
def test_without_all_of_torchruns_variables_a_process_is_alone(name):
    assert launched({key: value for key, value in TORCHRUN.items() if key != name}) == Launch()
    assert launched({**TORCHRUN, "RANK": "first"}) == Launch()


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("validation", [False, True])
def test_the_shares_of_all_processes_are_the_whole_batch(monkeypatch, processes, validation):
    def numbered(reader, step, sample):
        image, labels = np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 4, 4), np.uint8)
        return RawSample(SampleDraw(case=sample, start=(step, 0, 0)), "case", image, labels, (0, 0, 0))

    monkeypatch.setattr(StepReader, "_read_sample", numbered)

    def read(batch, settings):
        reader = StepReader(lambda _: None, case_count=1, channels=1, patch_shape=(4, 4), batch_size=batch,
                            settings=settings)
        return [sample.draw for sample in reader.read(7)]

    whole = read(3 * processes, DrawSettings(seed=1, is_validation=validation))
    shares = [read(3, DrawSettings(seed=1, is_validation=validation, process=rank, processes=processes))
              for rank in range(processes)]
    assert [draw for share in shares for draw in share] == whole
    assert [draw.case for draw in whole] == list(range(3 * processes))


def test_views_of_a_share_are_those_of_its_samples():
    def numbers(process, samples):
        objective = Objective.__new__(Objective)  # neither network nor losses matter here
        objective.seed, objective.process = 3, process
        return [rng.random() for rng in objective._chances(Step(4, 0.0), samples)]

    assert numbers(0, 2) + numbers(1, 2) == numbers(0, 4)


def test_layers_draw_otherwise_in_every_process():
    def drawn(process):
        seed_layers(1, 2, process)
        return torch.rand(3).tolist()

    assert drawn(0) == drawn(0) != drawn(1) != drawn(2)


def test_alone_nothing_is_sent_and_nothing_changes():
    layer = torch.nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.grad.clone()
    ALONE.average_gradients(layer)
    ALONE.same_weights(layer)
    ALONE.wait()
    assert torch.equal(layer.weight.grad, before)
    assert ALONE.agree(2.5, True) == (2.5, True)
    assert ALONE.texts("ü") == ["ü"]
    assert ALONE.means([torch.tensor(2.0)]) == [2.0]


def test_buckets_hold_every_gradient_once_and_in_order(monkeypatch):
    monkeypatch.setattr("autoseg.training.processes.BUCKET_BYTES", 40)
    gradients = [torch.zeros(size, dtype=dtype) for size, dtype in (
        (3, torch.float32), (4, torch.float32), (20, torch.float32), (2, torch.float32), (2, torch.float64))]
    buckets = list(_buckets(gradients))
    assert [len(bucket) for bucket in buckets] == [2, 1, 1, 1]
    assert [id(one) for bucket in buckets for one in bucket] == [id(one) for one in gradients]


def test_more_processes_than_gpus_are_refused_before_anything_is_done(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    crowded = Processes(Launch(rank=0, world=4, local_rank=0, local_world=4))
    with pytest.raises(UserError, match=r"4 processes on a machine with 2 GPUs.*\n.*--nproc-per-node 2"):
        crowded.device(torch.device("cuda"))
    fitting = Processes(Launch(rank=3, world=4, local_rank=1, local_world=2))
    assert fitting.device(torch.device("cuda")) == torch.device("cuda", 1)
    assert crowded.device(torch.device("cpu")) == torch.device("cpu")


def test_a_node_is_shared_fairly():
    assert Processes(Launch(0, 8, 0, 4)).fair_share(9) == 2
    assert Processes(Launch(0, 8, 0, 4)).fair_share(1) == 1
    assert ALONE.fair_share(7) == 7


def test_only_training_can_be_shared(monkeypatch, capsys):
    for name, value in {**TORCHRUN, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["autoseg", "predict", "-i", "images", "-o", "masks"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert "only train can be shared" in capsys.readouterr().err


def test_forced_foreground_is_counted_over_the_whole_batch():
    whole = [is_forced_foreground(sample, 6, 0.33) for sample in range(6)]
    assert whole == [False] * 4 + [True] * 2
