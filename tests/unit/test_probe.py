"""Every network can be probed for the fastest precision, also one without convolution blocks."""

import pytest
import torch
from torch import Tensor, nn

from autoseg.networks.segmenter import Part, Segmenter
from autoseg.training import probe
from autoseg.training.probe import choose_precision


class Pointwise(Segmenter):
    """No convolution block of ours in it."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.only = {2: nn.Conv2d, 3: nn.Conv3d}[axes](1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)

    def forward_all(self, x: Tensor) -> list[Tensor]:
        return [self(x)]

    def initialize(self) -> None:
        """As torch draws them."""

    def parts(self) -> list[Part]:
        return [Part("all", "one convolution", self)]


@pytest.mark.parametrize("patch", [(8, 16), (4, 8, 8)])
def test_a_network_without_our_blocks_is_probed_by_one_of_its_dimension(monkeypatch, patch):
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.01)
    network = Pointwise(len(patch))
    state = torch.get_rng_state()
    probed = choose_precision(network, (2, 1, *patch), torch.device("cpu"))
    assert probed.precision in ("float32", "bfloat16") and min(probed.float32_seconds, probed.bfloat16_seconds) > 0
    assert torch.equal(torch.get_rng_state(), state) and network.only.weight.grad is None
