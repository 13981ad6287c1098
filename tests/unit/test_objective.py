"""Laws of a training step: its gradients are the mean of its views', chance hangs on (seed, step, sample) alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_style_contrast import PATCHES, network_of
from torch import Tensor

from autoseg.data.intensity import SPAN
from autoseg.domains.fourier import fourier_view
from autoseg.domains.location_scale import class_masks, global_view, local_view
from autoseg.domains.random_convolution import RandomConvolutionSettings, random_convolution_views
from autoseg.domains.saliency import fuse, saliency_map
from autoseg.domains.style_contrast import ContentStyle, gate, stem_channels, stem_of
from autoseg.networks.segmenter import Segmenter
from autoseg.schema import NetworkPlan, TextGuidanceFacts
from autoseg.training import objective as module
from autoseg.training.batches import Batch
from autoseg.training.guiding import Guide, Words
from autoseg.training.losses import deep_supervision_loss
from autoseg.training.objective import Aim, LocationScale, Objective, RandomConvolution, Step, StyleContrast
from autoseg.training.settings import TrainSettings
from autoseg.training.targets import Targets

SEED, STEP = 5, Step(17, 0.3)
MEMBERS = torch.eye(3, dtype=torch.bool)[1:]
METHODS = ("plain", "gin", "gin2", "slaug", "ccsdg")
dimensions_each = pytest.mark.parametrize("dimensions", [2, 3])
methods_each = pytest.mark.parametrize("method", METHODS)
Gradients = dict[str, Tensor]


def batch_of(dimensions: int) -> Batch:
    """Two samples of two channels: noisy bodies of two organs in air at exactly 0."""
    rng = np.random.default_rng(2)
    patch = PATCHES[dimensions]
    labels = np.zeros((2, *patch), np.uint8)
    labels[..., 3:6, 3:9], labels[..., 7:13, 5:12] = 1, 2
    image = 1 + 0.8 * labels[:, None] + rng.uniform(-0.4, 0.4, (2, 2, *patch))
    image[..., :2], image[..., -2:] = 0, 0
    return Batch(torch.from_numpy(image.astype(np.float32)), torch.from_numpy(labels), ("a", "b"))


def objective_of(
    method: str, network: Segmenter, dimensions: int, guide: Guide | None = None, seed: int = SEED
) -> Objective:
    aim = Aim(Targets(MEMBERS), False)
    if method == "plain":
        return Objective(network, guide, aim, seed)
    if method in ("gin", "gin2"):
        return RandomConvolution(network, guide, aim, seed, 2 if method == "gin2" else 1)
    if method == "slaug":
        return LocationScale(network, guide, aim, seed)
    torch.manual_seed(8)
    return StyleContrast(network, guide, aim, seed, ContentStyle(stem_channels(network), dimensions))


def taken_gradients(*modules: torch.nn.Module) -> Gradients:
    """Of all parameters that have one; they are removed."""
    found = {f"{index}.{name}": parameter.grad for index, one in enumerate(modules)
             for name, parameter in one.named_parameters() if parameter.grad is not None}
    for one in modules:
        one.zero_grad()
    return found


def step_of(method: str, dimensions: int, step: Step = STEP, seed: int = SEED) -> tuple[Gradients, float]:
    network = network_of("plain", dimensions)
    objective = objective_of(method, network, dimensions, seed=seed)
    loss = objective.backward(batch_of(dimensions), step)
    assert not loss.requires_grad
    return taken_gradients(network), float(loss)


def seen_by(network: Segmenter, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The images that go through the network from now on."""
    images, forward = [], network.forward_all

    def spy(image: Tensor) -> list[Tensor]:
        images.append(image.detach().clone())
        return forward(image)

    monkeypatch.setattr(network, "forward_all", spy)
    return images


def mean_of_views(network: Segmenter, images: list[Tensor], labels: Tensor) -> tuple[Gradients, float]:
    """Gradients of the mean loss, in one backward pass over all views at once."""
    losses = [deep_supervision_loss(network.forward_all(image), labels, False) for image in images]
    loss = torch.stack(losses).mean()
    loss.backward()
    return taken_gradients(network), float(loss.detach())


def assert_same(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys() and found
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def equal(one: Gradients, other: Gradients) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def chances(objective: Objective, stream: int) -> list[np.random.Generator]:
    return [np.random.default_rng([SEED, stream, STEP.number, sample]) for sample in range(2)]


# ---------------------------------------------------------------- what every method keeps to
@dimensions_each
@methods_each
def test_chance_hangs_on_seed_and_step_alone(method: str, dimensions: int) -> None:
    first = step_of(method, dimensions)[0]
    torch.manual_seed(99)
    np.random.default_rng().random()
    assert equal(first, step_of(method, dimensions)[0])
    for other in (step_of(method, dimensions, step=Step(18, 0.3)), step_of(method, dimensions, seed=6)):
        assert equal(first, other[0]) == (method == "plain")


@dimensions_each
@methods_each
def test_neither_the_batch_nor_its_labels_are_changed(method: str, dimensions: int, monkeypatch) -> None:
    network, batch, before = network_of("plain", dimensions), batch_of(dimensions), batch_of(dimensions)
    labels = []
    monkeypatch.setattr(module, "deep_supervision_loss", lambda logits, reference, *others: (
        labels.append(reference.clone()), deep_supervision_loss(logits, reference, *others))[1])
    objective_of(method, network, dimensions).backward(batch, STEP)
    assert len(labels) == {"plain": 1, "gin": 1, "gin2": 2, "slaug": 2, "ccsdg": 3}[method]
    for seen in (*labels, batch.labels):
        assert torch.equal(seen, before.labels)
    assert torch.equal(batch.image, before.image) and not batch.image.requires_grad


@methods_each
def test_a_scaled_loss_gives_scaled_gradients_of_the_same_views(method: str, monkeypatch) -> None:
    """By a power of two, so every bit is the same: saliency, too, knows no scale."""
    network = network_of("plain", 2)
    objective = objective_of(method, network, 2)
    plain, images = taken_gradients_of(objective, network, monkeypatch)
    objective.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled, again = taken_gradients_of(objective, network, monkeypatch)
    assert equal({name: one / 1024 for name, one in scaled.items()}, plain)
    assert all(torch.equal(one, other) for one, other in zip(images, again, strict=True))


def taken_gradients_of(objective: Objective, network: Segmenter, monkeypatch) -> tuple[Gradients, list[Tensor]]:
    with monkeypatch.context() as patch:
        images = seen_by(network, patch)
        objective.backward(batch_of(2), STEP)
    return taken_gradients(network), images


@dimensions_each
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@methods_each
def test_half_precision_is_near_float32(method: str, precision: str, dimensions: int) -> None:
    network = network_of("plain", dimensions)
    objective = objective_of(method, network, dimensions)
    exact = objective.backward(batch_of(dimensions), STEP)
    objective.precision, objective.scaler = precision, torch.amp.GradScaler("cpu", enabled=False)
    loss = objective.backward(batch_of(dimensions), STEP)
    assert loss.dtype == torch.float32 and all(one.isfinite().all() for one in taken_gradients(network).values())
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
    assert objective.logits(batch_of(dimensions).image)[0].dtype == getattr(torch, precision)


@pytest.mark.parametrize("method", ["gin", "gin2", "slaug"])
def test_a_samples_first_view_does_not_hang_on_its_batch(method: str, monkeypatch) -> None:
    network = network_of("plain", 2)
    objective, images = objective_of(method, network, 2), seen_by(network, monkeypatch)
    whole = batch_of(2)
    for batch in (whole, Batch(whole.image[:1], whole.labels[:1], ("a",))):
        objective.backward(batch, STEP)
    torch.testing.assert_close(images[len(images) // 2], images[0][:1])


# ---------------------------------------------------------------- plain, GIN
@dimensions_each
def test_plain_training_is_the_loss_of_the_batch(dimensions: int) -> None:
    network, batch = network_of("plain", dimensions), batch_of(dimensions)
    expected, loss = mean_of_views(network, [batch.image], batch.labels)
    found = step_of("plain", dimensions)
    assert equal(found[0], expected) and found[1] == loss


@dimensions_each
@pytest.mark.parametrize("views", [1, 2])
def test_gin_takes_the_mean_over_its_views(views: int, dimensions: int) -> None:
    network, batch = network_of("plain", dimensions), batch_of(dimensions)
    objective = objective_of("gin2" if views == 2 else "gin", network, dimensions)
    images = random_convolution_views(batch.image, chances(objective, 3), RandomConvolutionSettings(views=views))
    assert len(images) == views and torch.equal(images[0], images[-1]) != (views == 2)
    expected, loss = mean_of_views(network, list(images), batch.labels)
    assert float(objective.backward(batch, STEP)) == pytest.approx(loss, rel=1e-5)
    assert_same(taken_gradients(network), expected)


# ---------------------------------------------------------------- SLAug
def slaug_parts(objective: LocationScale, batch: Batch) -> tuple[Tensor, Tensor]:
    """The mild and the strong view."""
    unit = batch.image / SPAN
    body, classes = unit.amax(1) > 0.01, class_masks(batch.labels, MEMBERS, None)
    return (global_view(unit, body, chances(objective, 3), objective.settings) * SPAN,
            local_view(unit, body, classes, chances(objective, 4), objective.settings) * SPAN)


@dimensions_each
def test_slaugs_second_view_is_chosen_by_the_firsts_gradient(dimensions: int, monkeypatch) -> None:
    network, batch = network_of("plain", dimensions), batch_of(dimensions)
    objective = objective_of("slaug", network, dimensions)
    mild, strong = slaug_parts(objective, batch)
    leaf = mild.clone().requires_grad_()
    deep_supervision_loss(network.forward_all(leaf), batch.labels, False).backward()
    network.zero_grad()
    assert leaf.grad is not None
    second = fuse(mild, strong, saliency_map(leaf.grad, objective._cells(PATCHES[dimensions])))
    expected, loss = mean_of_views(network, [mild, second], batch.labels)
    images = seen_by(network, monkeypatch)
    assert float(objective.backward(batch, STEP)) == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(images, [mild, second], rtol=1e-4, atol=1e-5)
    assert_same(taken_gradients(network), expected)


@dimensions_each
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_saliency_decides_between_the_local_and_the_global_view(value: float, dimensions: int, monkeypatch) -> None:
    network, batch = network_of("plain", dimensions), batch_of(dimensions)
    objective = objective_of("slaug", network, dimensions)
    mild, strong = slaug_parts(objective, batch)
    assert (mild - strong).abs().max() > 0.1
    monkeypatch.setattr(module, "saliency_map", lambda gradient, _: torch.full_like(gradient[:, :1], value))
    images = seen_by(network, monkeypatch)
    objective.backward(batch, STEP)
    torch.testing.assert_close(images, [mild, mild if value else strong])


@dimensions_each
def test_air_stays_exactly_zero_and_views_stay_in_the_span(dimensions: int, monkeypatch) -> None:
    network, batch = network_of("plain", dimensions), batch_of(dimensions)
    images = seen_by(network, monkeypatch)
    objective_of("slaug", network, dimensions).backward(batch, STEP)
    air = batch.image == 0
    assert air.any() and len(images) == 2
    for image in images:
        assert (image[air] == 0).all() and image.min() >= 0 and image.max() <= SPAN
        assert not torch.equal(image[~air], batch.image[~air])


@pytest.mark.parametrize("patch", [(32, 32), (192, 192), (16, 224, 224), (1, 640, 64), (3, 3, 3)])
def test_saliency_cells_follow_the_patch(patch: tuple[int, ...]) -> None:
    cells = objective_of("slaug", network_of("plain", 2), 2)._cells(patch)
    assert all(min(2, length) <= count <= length for length, count in zip(patch, cells, strict=True))
    by_length = sorted(zip(patch, cells, strict=True))
    assert [count for _, count in by_length] == sorted(cells), "longer axes have no fewer"


def test_patches_without_body_or_labels_do_no_harm() -> None:
    for method in METHODS:
        network = network_of("plain", 2)
        empty = Batch(torch.zeros(2, 2, 32, 32), torch.zeros(2, 32, 32, dtype=torch.uint8), ("a", "b"))
        assert objective_of(method, network, 2).backward(empty, STEP).isfinite()
        assert all(one.isfinite().all() for one in taken_gradients(network).values())


# ---------------------------------------------------------------- CCSDG
@dimensions_each
def test_ccsdg_trains_the_gated_network_on_three_views(dimensions: int) -> None:
    network, batch = network_of("plain", dimensions), batch_of(dimensions)
    objective = objective_of("ccsdg", network, dimensions)
    objective.backward(batch, STEP)
    found, of_style = taken_gradients(network), taken_gradients(objective.style)
    objective.close()
    unit = batch.image / SPAN
    scaled = global_view(unit, unit.amax(1) > 0.01, chances(objective, 4), objective.settings) * SPAN
    images = [batch.image, fourier_view(batch.image, chances(objective, 3)), scaled]
    with gate(network, objective.style, record=True) as passage:
        features, losses = [], []
        for image in images:
            losses.append(deep_supervision_loss(network.forward_all(image), batch.labels, False))
            features.append(passage.taken())
        torch.stack(losses).mean().backward()
    assert_same(found, taken_gradients(network))
    assert set(taken_gradients(objective.style)) == {"0.prompt"}, "segmentation knows the projector not"
    objective.style.contrast(features).backward()
    of_contrast = taken_gradients(objective.style)
    assert set(of_contrast) == set(of_style)
    assert all(torch.allclose(of_contrast[name], of_style[name], rtol=1e-4, atol=1e-6)
               for name in of_style if name != "0.prompt")
    assert not taken_gradients(network), "contrast knows prompt and projector alone"


@dimensions_each
def test_ccsdg_leaves_the_network_as_it_found_it(dimensions: int) -> None:
    network, batch = network_of("plain", dimensions), batch_of(dimensions)
    with torch.no_grad():
        before = network.forward_all(batch.image)[0]
        objective = objective_of("ccsdg", network, dimensions)
        assert len(stem_of(network)._forward_hooks) == 1
        assert not torch.allclose(objective.logits(batch.image)[0], before), "validation sees the gated network"
    objective.backward(batch, STEP)
    assert objective.gate._kept is None and not objective.gate.record
    objective.close()
    objective.close()
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in network.modules())
    assert torch.equal(network.forward_all(batch.image)[0], before)


# ---------------------------------------------------------------- beside words
def guide_of(network: Segmenter, route: str) -> Guide:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(5, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    facts = TextGuidanceFacts(route=route, geometry="centred", names=("a", "b"), matched=("a", "b"), distractors=(),
                              bank_sha256="", tower="", tower_sha256=None, tensors_sha256=None)
    settings = TrainSettings(text_guided=True, text_route=route)  # type: ignore[arg-type]
    planned = NetworkPlan.model_construct(patch_shape=PATCHES[2])
    return Guide(Words(vectors[:2], vectors[2:], facts), network, planned, 2, settings, 3, Targets(MEMBERS))


@pytest.mark.parametrize("route", ["alignment", "heads", "gram"])
@methods_each
def test_words_add_their_loss_to_every_view(method: str, route: str) -> None:
    network, batch = network_of("plain", 2), batch_of(2)
    guide = guide_of(network, route)
    objective = objective_of(method, network, 2, guide)
    losses, gradients = [], []
    for share in (0.0, 0.5):  # λ rises from zero
        losses.append(float(objective.backward(batch, Step(17, share))))
        gradients.append(taken_gradients(network, guide))
    assert np.isfinite(losses).all() and all(one.isfinite().all() for one in gradients[1].values())
    if route == "alignment":
        assert losses[0] < losses[1] and not equal(*gradients)
    elif route == "heads":
        assert losses[0] == losses[1] and equal(*gradients), "heads made of vectors have no loss of their own"
    else:
        assert losses[0] <= losses[1] + 1e-5, "of two labels the gram matrix says nothing, two views' consistency does"


def test_consistency_is_between_a_view_and_the_one_before_it(monkeypatch) -> None:
    network, batch = network_of("plain", 2), batch_of(2)
    guide = guide_of(network, "alignment")
    others: list[object] = []
    given: list[object] = []
    loss: Callable = guide.loss

    def spy(maps, labels, share, other, annotated):
        others.append(other)
        result = loss(maps, labels, share, other, annotated)
        given.append(result[1])
        return result

    monkeypatch.setattr(guide, "loss", spy)
    for method in ("plain", "gin", "gin2", "slaug", "ccsdg"):
        others.clear()
        given.clear()
        objective = objective_of(method, network, 2, guide)
        objective.backward(batch, STEP)
        objective.close()
        assert others[0] is None
        assert all(other is before for other, before in zip(others[1:], given[:-1], strict=True))
        assert not any(one.embeddings.requires_grad for one in given)
