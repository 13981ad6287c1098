"""The way of computing: as the recipe says, or measured; plain attention gives what the fused kernel gives."""

import pytest
import torch
from tiny_clip import tiny_model

from autoseg.errors import UserError
from vlm.model.records import CLIP_MEAN, CLIP_STD
from vlm.training.computing import Computing, choose_computing
from vlm.training.gradients import Towers
from vlm.training.settings import Optimization

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    return Towers(tiny_model(tmp_path_factory.mktemp("text")).network, CLIP_MEAN, CLIP_STD)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Of such a small model a second thread computes nothing faster, and waits on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def choice(**fields):
    return Optimization(learning_rate=1.0, warmup_share=0.1, batch_size=8, **fields)


def test_what_the_recipe_names_is_taken_without_measuring(towers):
    found = choose_computing(choice(precision="bfloat16", attention="plain"), towers, 32, CPU)
    assert found == Computing("bfloat16", "plain")


def test_measuring_leaves_gradients_and_random_draws_alone(towers):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = choose_computing(choice(precision="float32"), towers, 32, CPU)
    assert found.precision == "float32"
    assert torch.equal(torch.rand(3), expected)
    assert all(parameter.grad is None for parameter in towers.parameters())


def test_float16_on_a_cpu_is_refused(towers):
    with pytest.raises(UserError, match="float16, which this CPU does not compute in"):
        choose_computing(choice(precision="float16"), towers, 32, CPU)


def test_plain_and_fused_attention_give_the_same_embeddings(towers):
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0]])
    found = []
    towers.eval()
    for attention in ("fused", "plain"):
        with torch.no_grad(), Computing("float32", attention).forward(CPU):
            found.append(towers(images, [ids]))
    assert torch.allclose(found[0].images, found[1].images, atol=1e-6)
    assert torch.allclose(found[0].texts, found[1].texts, atol=1e-6)
    with torch.no_grad(), Computing("bfloat16", "plain").forward(CPU):
        rough = towers(images, [ids]).images
    assert rough.dtype == torch.float32 and 0 < (rough - found[0].images).abs().max() < 0.05
