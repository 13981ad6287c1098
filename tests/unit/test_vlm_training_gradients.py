"""Gradients of a batch in chunks are those of the whole batch, dropout included; also with frozen towers."""

import numpy as np
import pytest
import torch
from tiny_clip import tiny_model

from vlm.model.records import CLIP_MEAN, CLIP_STD
from vlm.training.computing import Computing
from vlm.training.gradients import Pass, Towers, accumulate_gradients, checkpoint_activations, layer_seed
from vlm.training.loss import LOSSES, Embedded, Keys
from vlm.training.processes import Processes
from vlm.training.streaming import Batch
from vlm.training.texts import group_texts

TEXTS = ["ct scan", "a normal chest", "the image shows a tumor of the left kidney", "ct scan", "a liver", "no tumor",
         "the image shows a liver with a tumor"]
CPU = torch.device("cpu")


def make_batch(tokenizer, most, share=True):
    images = np.random.default_rng(0).integers(0, 255, (len(TEXTS), 3, 32, 32), np.uint8)
    texts = group_texts(TEXTS, tokenizer, share=share, to_context=False, call_tokens=4, most=most)
    return Batch(torch.from_numpy(images), texts, torch.tensor([1, 2, 3, 4, 1, 5, 6]),
                 torch.tensor([1, 2, 3, 1, 4, 5, 6]), tuple(f"uid{number}" for number in range(len(TEXTS))))


def gradients(model, batch, loss, chunk_size, step=3):
    network = model.network.double().train()
    towers = Towers(network, CLIP_MEAN, CLIP_STD).double()
    how = Pass(towers, None, Processes(), chunk_size, Computing("float32"), 5, lambda value: value)
    network.zero_grad()
    found = accumulate_gradients(how, batch, LOSSES[loss], CPU, step)
    return float(found.loss), {name: None if parameter.grad is None else parameter.grad.clone()
                               for name, parameter in network.named_parameters()}


def without_dropout(model):
    for module in model.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 6])
@pytest.mark.parametrize("loss", ["infonce", "multi_positive"])
def test_chunks_give_the_gradients_of_the_whole_batch(tmp_path, loss, chunk_size):
    model = without_dropout(tiny_model(tmp_path))
    value, whole = gradients(model, make_batch(model.tokenizer, 7), loss, 7)
    found, chunked = gradients(model, make_batch(model.tokenizer, chunk_size), loss, chunk_size)
    assert found == pytest.approx(value, abs=1e-12)
    for name, gradient in whole.items():
        assert torch.allclose(gradient, chunked[name], rtol=1e-9, atol=1e-12), name


def test_the_sigmoid_loss_goes_through_chunks_with_its_bias(tmp_path):
    model = without_dropout(tiny_model(tmp_path, init_logit_scale=2.3, init_logit_bias=-10.0))
    _, whole = gradients(model, make_batch(model.tokenizer, 7), "siglip", 7)
    _, chunked = gradients(model, make_batch(model.tokenizer, 2), "siglip", 2)
    assert whole["logit_bias"].abs() > 0.01
    for name, gradient in whole.items():
        assert torch.allclose(gradient, chunked[name], rtol=1e-9, atol=1e-12), name


def test_activations_that_are_computed_twice_give_the_same_gradients(tmp_path):
    model = tiny_model(tmp_path)  # with dropout, whose draws have to be repeated
    _, kept = gradients(model, make_batch(model.tokenizer, 3), "infonce", 3)
    checkpoint_activations(model.network)
    _, computed_twice = gradients(model, make_batch(model.tokenizer, 3), "infonce", 3)
    for name, gradient in kept.items():
        assert torch.allclose(gradient, computed_twice[name], rtol=1e-9, atol=1e-12), name


def test_gradients_are_those_of_autograd_through_both_towers(tmp_path):
    model = without_dropout(tiny_model(tmp_path))
    _, found = gradients(model, make_batch(model.tokenizer, 7), "infonce", 7)
    batch, network = make_batch(model.tokenizer, 7, share=False), model.network
    towers = Towers(network, CLIP_MEAN, CLIP_STD).double()
    network.zero_grad()
    images, texts, scale, _ = towers(batch.images, batch.texts.groups)
    LOSSES["infonce"](Embedded(images, texts[batch.texts.place], scale, None),
                      Keys(batch.label_keys, batch.text_keys)).backward()
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter.grad, found[name], rtol=1e-9, atol=1e-12), name


def test_dropout_draws_the_same_in_both_passes_of_a_chunk(tmp_path):
    # A finite difference of the loss, with the same draws, is the gradient only where they are.
    model = tiny_model(tmp_path)
    batch = make_batch(model.tokenizer, 3)
    _, chunked = gradients(model, batch, "infonce", 3)
    weight = model.network.text.proj[0].weight
    values = []
    for change in (1e-5, -2e-5):
        with torch.no_grad():
            weight[0, 0] += change
        values.append(gradients(model, batch, "infonce", 3)[0])
    slope = (values[0] - values[1]) / 2e-5
    assert slope == pytest.approx(float(chunked["text.proj.0.weight"][0, 0]), rel=1e-4, abs=1e-9)


def test_frozen_towers_keep_their_weights_and_the_rest_learns(tmp_path):
    model = tiny_model(tmp_path)
    for parameter in model.network.visual.parameters():
        parameter.requires_grad_(False)
    for chunk_size in (7, 2):
        _, found = gradients(model, make_batch(model.tokenizer, chunk_size), "infonce", chunk_size)
        assert all((gradient is None) == name.startswith("visual.") for name, gradient in found.items())


def test_a_loss_that_is_no_number_leaves_no_gradients_and_names_the_pairs(tmp_path):
    model = tiny_model(tmp_path)
    with torch.no_grad():
        model.network.text.transformer.embeddings.word_embeddings.weight[
            model.tokenizer.encode(["kidney"]).ids[0, 1]] = float("nan")
    how = Pass(Towers(model.network, CLIP_MEAN, CLIP_STD), None, Processes(), 2, Computing("float32"), 0,
               lambda value: value)
    found = accumulate_gradients(how, make_batch(model.tokenizer, 2), LOSSES["infonce"], CPU, 0)
    assert not torch.isfinite(found.loss)
    assert found.is_sound.tolist() == ["kidney" not in text for text in TEXTS]
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_what_layers_draw_differs_between_steps_processes_and_chunks():
    seeds = {layer_seed(seed, step, rank, chunk) for seed in (0, 1) for step in (0, 1) for rank in (0, 1)
             for chunk in (0, 1)}
    assert len(seeds) == 16
