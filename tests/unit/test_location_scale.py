"""Laws of SLAug's random functions and of its two views, and a slow reference of the local view."""

import numpy as np
import pytest
import torch
from torch import Tensor

from autoseg.domains.curves import KNOTS, CurveDraw, bezier, draw_curve, knots, look_up, tabulate
from autoseg.domains.location_scale import (
    LocationScaleSettings,
    class_masks,
    global_view,
    local_view,
    region_percentiles,
)
from autoseg.errors import UserError

HARD = LocationScaleSettings(soften=0.0, background_clusters=1)
SOFT = LocationScaleSettings()
PATCHES = [(24, 30), (1, 40), (8, 11, 9)]
EVEN = np.arange(101) / 100
MEMBERS = torch.tensor([[0, 1, 0], [0, 0, 1]], dtype=torch.bool)


def chances(*samples: int) -> list[np.random.Generator]:
    return [np.random.default_rng([5, sample]) for sample in samples]


def batch(samples: int, patch: tuple[int, ...], channels: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Images with a border of air, their bodies, and labels 0 (background), 1 and 2 in slabs along the last axis."""
    generator = torch.Generator().manual_seed(3)
    unit = 0.05 + 0.9 * torch.rand(samples, channels, *patch, generator=generator)
    labels = torch.zeros(samples, *patch, dtype=torch.uint8)
    third = patch[-1] // 3
    labels[..., third : 2 * third] = 1
    labels[..., 2 * third : -2] = 2
    unit = unit * (0.4 + 0.3 * labels[:, None].float())
    body = torch.ones(samples, *patch, dtype=torch.bool)
    body[..., :2] = False
    return unit * body[:, None], body, labels


@pytest.mark.parametrize("inverted", [False, True])
def test_curves_are_monotone_between_their_ends(inverted: bool) -> None:
    rng = np.random.default_rng(0)
    at = np.linspace(0, 1, 501)
    moved = []
    for _ in range(200):
        values = bezier(draw_curve(rng, float(inverted)), at)
        assert (np.diff(-values if inverted else values) >= -1e-12).all()
        assert [values[0], values[-1]] == ([1, 0] if inverted else [0, 1])
        moved.append(np.abs(values - at).mean())
    # The published code's draws move values by 0.12 and 0.50 on average.
    assert np.mean(moved) == pytest.approx(0.5 if inverted else 0.12, abs=0.02)


def test_control_points_on_the_diagonal_change_nothing_and_others_do() -> None:
    draw = CurveDraw(np.array([[1 / 3, 1 / 3], [2 / 3, 2 / 3]]), 1.0, 0.0, False)
    percentiles = 0.2 + 0.5 * EVEN
    np.testing.assert_allclose(tabulate(draw, percentiles, knots(percentiles)), knots(percentiles), atol=1e-9)
    moved = CurveDraw(draw.points, 0.9, 0.05, False)
    np.testing.assert_allclose(tabulate(moved, percentiles, percentiles), 0.9 * percentiles + 0.05, atol=1e-6)
    turned = CurveDraw(draw.points, 1.1, -0.1, True)
    np.testing.assert_allclose(tabulate(turned, percentiles, percentiles), 1.1 * (0.9 - percentiles) - 0.1, atol=1e-6)


def test_the_location_keeps_three_fifths_in_range() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        draw = draw_curve(rng, 0.5)
        assert 0.9 <= draw.scale <= 1.1
        percentiles = np.sort(rng.random(101))
        curve = CurveDraw(draw.points, 1.0, 0.0, draw.inverted)
        low, high = np.sort(tabulate(curve, percentiles, percentiles[[20, 80]]))
        far = CurveDraw(draw.points, 1.0, draw.location * 100, draw.inverted)
        ends = np.sort(tabulate(far, percentiles, percentiles[[20, 80]]))
        assert ends[0] >= -1e-9 and ends[1] <= 1 + 1e-9
        assert ends[1] - ends[0] == pytest.approx(high - low)


@pytest.mark.parametrize("patch", PATCHES)
def test_a_lookup_interpolates_its_own_table(patch: tuple[int, ...]) -> None:
    values = torch.rand(2, 3, *patch)
    tables = torch.rand(2, 3, KNOTS)
    low, high = torch.full((2, 3), 0.2), torch.tensor([[0.7, 0.9, 1.0]] * 2)
    changed = look_up(values, tables * 1.5 - 0.2, low, high)
    for sample, channel in np.ndindex(2, 3):
        at = np.linspace(0.2, float(high[sample, channel]), KNOTS)
        table = tables[sample, channel].numpy() * 1.5 - 0.2
        expected = np.interp(values[sample, channel].numpy(), at, table)
        np.testing.assert_allclose(changed[sample, channel].numpy(), np.clip(expected, 0, 1), atol=2e-4)


@pytest.mark.parametrize("size", [1, 2, 7, 500, 20000])
def test_percentiles_are_those_of_the_region(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    values = torch.rand(2, 2, size, 2, generator=generator) ** 2
    region = torch.rand(2, size, 2, generator=generator) < 0.7
    region[0] = True
    region[1, 0] = True
    found = region_percentiles(values, region).numpy()
    for sample, channel in np.ndindex(2, 2):
        inside = values[sample, channel][region[sample]].numpy()
        expected = np.percentile(inside, np.arange(101))
        assert found[sample, channel, 0] == inside.min() and found[sample, channel, -1] == inside.max()
        assert (np.diff(found[sample, channel]) >= 0).all()
        if size >= 500:
            np.testing.assert_allclose(found[sample, channel], expected, atol=5e-3)
        # Between two values far apart a histogram sees nothing: a percentile is at the one or the other.
        below = np.percentile(inside, np.arange(101), method="lower") - 1 / 4096
        above = np.percentile(inside, np.arange(101), method="higher") + 1 / 4096
        assert (found[sample, channel] >= below).all() and (found[sample, channel] <= above).all()


def test_percentiles_of_nothing_are_zero() -> None:
    assert not region_percentiles(torch.rand(1, 2, 5, 5), torch.zeros(1, 5, 5, dtype=torch.bool)).any()


@pytest.mark.parametrize("channels", [1, 2])
def test_the_global_view_is_an_increasing_function_of_the_body(channels: int) -> None:
    unit, body, _ = batch(2, (40, 41), channels)
    view = global_view(unit, body, chances(0, 1), SOFT)
    for sample, rng in enumerate(chances(0, 1)):
        for channel in range(channels):
            draw = draw_curve(rng, 0.0)
            inside = unit[sample, channel][body[sample]].double().numpy()
            percentiles = np.percentile(inside, np.arange(101))
            expected = np.clip(tabulate(draw, percentiles, inside), 0, 1)
            changed = view[sample, channel][body[sample]].numpy()
            # A table is off by a little where its curve is steep.
            difference = np.abs(changed - expected)
            assert np.median(difference) < 5e-4 and difference.max() < 0.02
            assert (np.diff(changed[np.argsort(inside)]) >= -1e-6).all()
            assert np.abs(changed - inside).mean() > 0.01


def test_air_does_not_move_the_percentiles() -> None:
    unit, body, _ = batch(4, (40, 40))
    wide = torch.nn.functional.pad(unit, (60, 60))
    view = global_view(wide, torch.nn.functional.pad(body, (60, 60)), chances(0, 1, 2, 3), SOFT)
    torch.testing.assert_close(view[..., 60:-60], global_view(unit, body, chances(0, 1, 2, 3), SOFT))
    assert not view[..., :60].any()
    # With air in the percentiles no image could become darker.
    means = [
        float((global_view(unit[:1], body[:1], chances(seed), SOFT) - unit[:1])[0, 0][body[0]].mean())
        for seed in range(24)
    ]
    assert 5 < sum(mean < 0 for mean in means) < 19


def reference(unit: np.ndarray, body: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hard borders and one background cluster, a voxel after the other, curves without a table."""
    channels, result = len(unit), unit.copy()
    background = [draw_curve(rng, 1.0) for _ in range(channels)]
    draws = {0: background} | {value: [draw_curve(rng, 0.5) for _ in range(channels)] for value in (1, 2)}
    for channel in range(channels):
        for value, own in draws.items():
            region = body & (labels == value)
            if not region.any():
                continue
            percentiles = np.percentile(unit[channel][region], np.arange(101))
            for voxel in np.argwhere(region):
                at = (channel, *voxel)
                changed = tabulate(own[channel], percentiles, unit[at][None])[0]
                result[at] = min(max(changed, 0.0), 1.0)
    return result


@pytest.mark.parametrize("patch", [(24, 30), (8, 11, 12)])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_local_view_is_its_definition(patch: tuple[int, ...], channels: int) -> None:
    unit, body, labels = batch(2, patch, channels)
    labels[1][labels[1] == 2] = 0  # absent
    view = local_view(unit, body, class_masks(labels, MEMBERS, None), chances(0, 1), HARD)
    for sample, rng in enumerate(chances(0, 1)):
        expected = reference(unit[sample].double().numpy(), body[sample].numpy(), labels[sample].numpy(), rng)
        difference = np.abs(view[sample].numpy() - expected)
        # Percentiles of few voxels come from a histogram: the location's limits can differ a little.
        assert np.median(difference) < 2e-3 and difference.max() < 0.03
    assert torch.equal(view.movedim(1, -1)[~body], unit.movedim(1, -1)[~body])


@pytest.mark.parametrize("settings", [HARD, LocationScaleSettings(soften=0.0)])
def test_hard_borders_keep_classes_apart(settings: LocationScaleSettings) -> None:
    unit, body, labels = batch(2, (24, 30), 2)
    classes = class_masks(labels, MEMBERS, None)
    view = local_view(unit, body, classes, chances(0, 1), settings)
    changed = unit.clone()
    inside = (labels == 1)[:, None].expand_as(unit)
    changed[inside] = 1 - changed[inside]
    other = local_view(changed, body, classes, chances(0, 1), settings)
    assert torch.equal(view[~inside], other[~inside]) and not torch.equal(view[inside], other[inside])


def test_an_absent_class_changes_nothing() -> None:
    unit, body, labels = batch(2, (24, 30))
    labels[labels == 2] = 1
    classes = class_masks(labels, MEMBERS, None)
    view = local_view(unit, body, classes, chances(0, 1), SOFT)
    torch.testing.assert_close(view, local_view(unit, body, classes[:, :1], chances(0, 1), SOFT))
    none = local_view(unit, body, classes[:, :0], chances(0, 1), SOFT)
    torch.testing.assert_close(none, local_view(unit, body, torch.zeros_like(classes), chances(0, 1), SOFT))
    assert not torch.allclose(none, view, atol=0.05)


@pytest.mark.parametrize("settings", [HARD, SOFT])
@pytest.mark.parametrize("view", ["global", "local"])
def test_an_empty_body_stays_as_it_is(view: str, settings: LocationScaleSettings) -> None:
    unit, body, labels = batch(2, (12, 15))
    body[0] = False
    classes = class_masks(labels, MEMBERS, None)
    if view == "global":
        changed = global_view(unit, body, chances(0, 1), settings)
    else:
        changed = local_view(unit, body, classes, chances(0, 1), settings)
    assert torch.equal(changed[0], unit[0]) and changed.isfinite().all()
    assert not torch.allclose(changed[1], unit[1], atol=0.05)


def test_labels_on_air_do_not_count() -> None:
    unit, body, labels = batch(1, (24, 30))
    marked = torch.where(body, labels, 1)
    views = [local_view(unit, body, class_masks(each, MEMBERS, None), chances(0), SOFT) for each in (labels, marked)]
    assert torch.equal(*views)


def test_ignored_voxels_are_background() -> None:
    unit, body, labels = batch(1, (24, 30))
    ignored = torch.where(labels == 2, 7, labels)
    masks = class_masks(ignored, MEMBERS, None)
    assert torch.equal(masks, class_masks(torch.where(labels == 2, 0, labels), MEMBERS, None))
    assert torch.equal(masks, class_masks(labels, MEMBERS, 2))
    assert class_masks(labels.to(torch.int16) - 1, MEMBERS, None)[0, 0].sum() == (labels == 2).sum()


def test_regions_may_overlap() -> None:
    unit, body, labels = batch(1, (24, 30))
    members = torch.tensor([[0, 1, 1], [0, 0, 1]], dtype=torch.bool)
    masks = class_masks(labels, members, None)
    assert torch.equal(masks[:, 0] > 0, labels > 0) and torch.equal(masks[:, 1] > 0, labels == 2)
    view = local_view(unit, body, masks, chances(0), HARD)
    both = (labels == 2)[:, None] & body[:, None]
    # The outer region alone, and the inner one alone, in the same places of the draw.
    zero = torch.zeros_like(masks[:, :1])
    outer = local_view(unit, body, torch.cat([masks[:, :1], zero], 1), chances(0), HARD)
    inner = local_view(unit, body, torch.cat([zero, masks[:, 1:]], 1), chances(0), HARD)
    torch.testing.assert_close(view[both], (outer[both] + inner[both]) / 2)


@pytest.mark.parametrize("soften", [0.7, 1.5])
def test_soft_borders_change_voxels_near_a_border_only(soften: float) -> None:
    unit, body, labels = batch(1, (24, 60))
    masks = class_masks(labels, MEMBERS, None)
    hard = local_view(unit, body, masks, chances(0), LocationScaleSettings(soften=0.0))
    soft = local_view(unit, body, masks, chances(0), LocationScaleSettings(soften=soften))
    differs = ((hard - soft).abs() > 1e-5)[0, 0].any(0).nonzero().flatten().tolist()
    reach = int(np.ceil(3 * soften))
    borders = (20, 40, 58)
    assert differs and all(any(border - reach <= column < border + reach for border in borders) for column in differs)
    # Air has no weight: the first voxels of the body are background entirely.
    torch.testing.assert_close(soft[..., 2:4], hard[..., 2:4])


def test_a_step_between_regions_becomes_a_ramp() -> None:
    unit = torch.full((1, 1, 4, 40), 0.3)
    unit[..., 20:] = 0.6
    masks = torch.zeros(1, 1, 4, 40)
    masks[..., 20:] = 1
    body = torch.ones(1, 4, 40, dtype=torch.bool)
    soft = local_view(unit, body, masks, chances(3), LocationScaleSettings(soften=2.0))[0, 0, 0]
    hard = local_view(unit, body, masks, chances(3), LocationScaleSettings(soften=0.0))[0, 0, 0]
    steps = [float(view.diff().abs().max()) for view in (soft, hard)]
    assert steps[0] < 0.3 * steps[1]


def test_clusters_of_the_background_are_not_one_monotone_function() -> None:
    body, masks = torch.ones(1, 4, 100, dtype=torch.bool), torch.zeros(1, 1, 4, 100)
    unit = torch.linspace(0.05, 1, 400).view(1, 1, 4, 100)
    turns = {}
    for clusters in (1, 3):
        settings = LocationScaleSettings(background_clusters=clusters)
        steps = [local_view(unit, body, masks, chances(s), settings).flatten().diff() for s in range(15)]
        turns[clusters] = sum(bool((step > 1e-4).any()) for step in steps)
        # Continuous: no step much above what three functions in a row can have.
        assert max(float(step.abs().max()) for step in steps) < 0.1
    assert turns[1] == 0 and turns[3] > 10


@pytest.mark.parametrize("patch", PATCHES)
def test_a_sample_is_a_function_of_itself_and_its_own_chance(patch: tuple[int, ...]) -> None:
    unit, body, labels = batch(3, patch, 2)
    masks = class_masks(labels, MEMBERS, None)
    view = local_view(unit, body, masks, chances(0, 1, 2), SOFT)
    assert view.shape == unit.shape and view.dtype == torch.float32
    assert view.min() >= 0 and view.max() <= 1
    assert torch.equal(view, local_view(unit, body, masks, chances(0, 1, 2), SOFT))
    other = local_view(unit, body, masks, chances(0, 7, 2), SOFT)
    assert torch.equal(other[[0, 2]], view[[0, 2]]) and not torch.allclose(other[1], view[1], atol=0.05)
    turned = local_view(unit.flip(0), body.flip(0), masks.flip(0), chances(2, 1, 0), SOFT)
    torch.testing.assert_close(turned.flip(0), view)
    mild = global_view(unit, body, chances(0, 1, 2), SOFT)
    assert torch.equal(global_view(unit, body, chances(0, 7, 2), SOFT)[[0, 2]], mild[[0, 2]])
    torch.testing.assert_close(global_view(unit.flip(0), body.flip(0), chances(2, 1, 0), SOFT).flip(0), mild)


def test_autocast_does_not_lower_the_precision() -> None:
    unit, body, labels = batch(2, (24, 30), 2)
    masks = class_masks(labels, MEMBERS, None)
    expected = local_view(unit, body, masks, chances(0, 1), SOFT), global_view(unit, body, chances(0, 1), SOFT)
    with torch.autocast("cpu", torch.bfloat16):
        views = local_view(unit, body, masks, chances(0, 1), SOFT), global_view(unit, body, chances(0, 1), SOFT)
    for view, exact in zip(views, expected, strict=True):
        assert view.dtype == torch.float32 and torch.equal(view, exact)


@pytest.mark.parametrize("wrong", [{"inverted_chance": 1.5}, {"soften": -1.0}, {"background_clusters": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        LocationScaleSettings(**wrong)  # type: ignore[arg-type]
