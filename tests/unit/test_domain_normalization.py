"""`percentile` and `rank`: what an image becomes by itself, and where plans, stores and predictions take them from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from test_init_images import added, write_dataset
from test_planner import STATISTICS, make_fingerprint, plan

from autoseg.commands.plan import plan as plan_command
from autoseg.commands.plan import read_plan
from autoseg.data.dataset import Dataset, open_dataset
from autoseg.data.intensity import AIR_SHARE, DARKEST_RANK, EXTREMES, RANK_TABLE, SPAN, normalize, normalize_channel
from autoseg.data.preprocessing import prepare_image, preprocess_dataset
from autoseg.data.store import Store, in_memory, loses_nothing_in_half, open_case, open_store, store_folder
from autoseg.data.volume import read_image
from autoseg.errors import UserError
from autoseg.initialization.images import image_sources
from autoseg.planning.normalization import with_normalization
from autoseg.planning.planner import PlanSettings, add_architecture, store_record
from autoseg.planning.summary import describe_plan
from autoseg.schema import ChannelNormalization, ConfigurationPlan

Scheme = Literal["percentile", "rank"]
SCHEMES: tuple[Scheme, ...] = ("percentile", "rank")
both = pytest.mark.parametrize("scheme", SCHEMES)
ONE_PART = 2 * SPAN / RANK_TABLE  # of the table of ranks, and as much for the rounding of its entries
OTHERS = STATISTICS.model_copy(update={"mean": -400.0, "std": 0.1, "percentile_99_5": 0.2})


def how(scheme: Scheme) -> ChannelNormalization:
    return ChannelNormalization(scheme=scheme, within_nonzero=False, statistics=STATISTICS)


def normalized(image: np.ndarray, scheme: Scheme) -> np.ndarray:
    return normalize_channel(image, None, how(scheme))


def body_of(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, EXTREMES)
    return np.asarray(image > low + AIR_SHARE * (high - low))


def phantom(seed: int = 0, shape: tuple[int, int, int] = (12, 20, 22)) -> np.ndarray:
    """Air of exactly one value around a body of many, as after cropping an MR image whose background was masked."""
    rng = np.random.default_rng(seed)
    image = np.full(shape, 20, np.float32)
    image[2:-2, 3:-3, 3:-3] = rng.gamma(6, 60, tuple(side - cut for side, cut in zip(shape, (4, 6, 6), strict=True)))
    return image


@st.composite
def images(draw: st.DrawFn) -> np.ndarray:
    """Images of few or many values, spread evenly or along a tail, with or without air, of any unit."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    shape = draw(st.tuples(*[st.integers(1, 12)] * 3))
    values = draw(st.sampled_from([
        lambda: rng.normal(0, 1, shape), lambda: rng.gamma(0.5, 1, shape), lambda: rng.integers(0, 4, shape),
        lambda: rng.integers(0, 256, shape), lambda: rng.random(shape) < 0.004]))().astype(np.float64)
    values[rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.999]))] = values.min()
    return (values * draw(st.sampled_from([1e-9, 1.0, 3e4])) + draw(st.sampled_from([0.0, -7.0]))).astype(np.float32)


# ---------------------------------------------------------------- laws of both
@both
@given(image=images())
def test_body_lies_in_the_span_air_at_zero_and_order_is_kept(scheme: Scheme, image: np.ndarray) -> None:
    before, result = image.copy(), normalized(image, scheme)
    assert result.dtype == np.float32 and np.array_equal(image, before)
    assert result.min() >= 0 and result.max() <= SPAN
    order = np.argsort(image, axis=None, kind="stable")
    assert (np.diff(result.reshape(-1)[order]) >= 0).all()
    same_value = np.diff(image.reshape(-1)[order]) == 0
    assert (np.diff(result.reshape(-1)[order])[same_value] == 0).all()
    if image.min() < image.max():
        assert result.max() > 0, "an image of more than one value has a body"
        assert result.reshape(-1)[order[0]] == 0


@both
def test_air_is_exactly_zero_and_body_is_not(scheme: Scheme) -> None:
    image = phantom()
    air = ~body_of(image)
    assert (image[air] < 40).all() and air.any()
    result = normalized(image, scheme)
    assert (result[air] == 0).all()
    assert np.count_nonzero(result[~air] == 0) <= (0.006 if scheme == "percentile" else 0) * np.count_nonzero(~air)


@both
@pytest.mark.parametrize("value", [0.0, -1024.0, 3.5e4])
def test_an_image_of_one_value_becomes_zero(scheme: Scheme, value: float) -> None:
    assert not normalized(np.full((2, 3, 4), value, np.float32), scheme).any()


@both
def test_a_body_of_one_value_is_not_air(scheme: Scheme) -> None:
    """A mask, and one whose body takes fewer voxels than the percentiles leave out."""
    for share in (0.5, 0.001):
        image = np.zeros((10, 20, 20), np.float32)
        image.reshape(-1)[: round(share * image.size)] = 7
        result = normalized(image, scheme)
        assert (result[image == 0] == 0).all()
        assert np.unique(result[image == 7]) == pytest.approx(
            SPAN if scheme == "percentile" else SPAN * (DARKEST_RANK + (1 - DARKEST_RANK) / 2))


@both
def test_nothing_of_the_dataset_is_used(scheme: Scheme) -> None:
    image = phantom()
    other = how(scheme).model_copy(update={"statistics": OTHERS, "within_nonzero": True})
    assert np.array_equal(normalize_channel(image, None, other), normalized(image, scheme))


@both
def test_channels_are_normalized_apart(scheme: Scheme) -> None:
    image = np.stack([phantom(1), 1e4 - 30 * phantom(2)])
    result = normalize(image, None, [how(scheme)] * 2)
    for channel in (0, 1):
        assert np.array_equal(result[channel], normalized(image[channel], scheme))


@both
@given(factor=st.floats(1e-9, 1e6), shift=st.floats(-1, 1), seed=st.integers(0, 50))
@settings(max_examples=20)
def test_units_and_offsets_do_not_matter(scheme: Scheme, factor: float, shift: float, seed: int) -> None:
    """Offsets up to the image's own range; what is left is the rounding of the changed image."""
    image = phantom(seed)
    changed = (factor * (image.astype(np.float64) + 1000 * shift)).astype(np.float32)
    first, second = normalized(image, scheme), normalized(changed, scheme)
    assert np.array_equal(first == 0, second == 0) or scheme == "percentile"
    np.testing.assert_allclose(second, first, atol=1e-4 if scheme == "percentile" else ONE_PART)


@both
def test_half_precision_will_do_in_a_store(scheme: Scheme) -> None:
    assert loses_nothing_in_half(normalized(phantom(), scheme)[None])


# ---------------------------------------------------------------- percentile
def test_percentile_is_linear_between_the_bodys_percentiles() -> None:
    image = phantom()
    body = body_of(image)
    low, high = np.percentile(image[body].astype(np.float64), EXTREMES)
    expected = np.where(body, SPAN * np.clip((image - low) / (high - low), 0, 1), 0)
    np.testing.assert_allclose(normalized(image, "percentile"), expected, atol=1e-5)


# ---------------------------------------------------------------- rank
def expected_ranks(image: np.ndarray) -> np.ndarray:
    """By SciPy's mean ranks, half a voxel higher than what is darker and half of what is equal."""
    body = body_of(image)
    shares = (rankdata(image[body]) - 0.5) / np.count_nonzero(body)
    result = np.zeros(image.shape)
    result[body] = SPAN * (DARKEST_RANK + (1 - DARKEST_RANK) * shares)
    return result


def test_rank_is_the_mean_rank_where_the_table_holds_every_voxel() -> None:
    image = np.round(phantom(shape=(10, 16, 18)))
    assert np.count_nonzero(body_of(image)) <= RANK_TABLE
    np.testing.assert_allclose(normalized(image, "rank"), expected_ranks(image), atol=1e-5)


@pytest.mark.parametrize("tied", [0.0, 0.3, 0.9])
def test_rank_is_right_to_one_part_of_the_table_beside_ties_of_any_size(tied: float) -> None:
    """A saturated or masked value may hold most of the body; the values just beside it keep their own ranks."""
    rng = np.random.default_rng(5)
    image = rng.gamma(3, 1, (30, 40, 50)).astype(np.float32) + 1
    image[rng.random(image.shape) < tied] = 3.5
    image[:3] = 0
    np.testing.assert_allclose(normalized(image, "rank"), expected_ranks(image), atol=ONE_PART)


def test_equal_voxels_get_one_rank_and_bytes_keep_all_their_values() -> None:
    image = np.random.default_rng(3).binomial(255, 0.5, (20, 40, 40)).astype(np.float32)
    result = normalized(image, "rank")
    for value in np.unique(image):
        assert len(np.unique(result[image == value])) == 1
    assert len(np.unique(result[body_of(image)])) == len(np.unique(image[body_of(image)]))
    assert result[body_of(image)].min() >= SPAN * DARKEST_RANK


REMAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gamma": lambda u: u**1.7, "root": np.sqrt, "exponential": np.expm1, "steep": lambda u: u + 3 * np.tanh(8 * u)}


@pytest.mark.parametrize("name", REMAPS)
@pytest.mark.parametrize("shape", [(10, 16, 18), (24, 40, 44)])
def test_no_increasing_change_of_intensities_matters_to_rank(name: str, shape: tuple[int, int, int]) -> None:
    """Of images whose body stays the body: the darkest tissue is bright enough before and after."""
    image = phantom(shape=shape)
    unit = np.where(body_of(image), 0.2 + image.astype(np.float64) / 2000, 0)
    changed = REMAPS[name](unit)
    assert np.array_equal(body_of(unit), body_of(changed))
    first, second = (normalized(one.astype(np.float32), "rank") for one in (unit, changed))
    np.testing.assert_allclose(second, first, atol=ONE_PART)


def test_an_inverted_image_is_outside_the_rule() -> None:
    """The documented limit: where air is bright it is body, and the brightest."""
    image = 1000 - np.clip(phantom(), 0, 900)
    assert normalized(image, "rank")[0, 0, 0] > SPAN / 2


# ---------------------------------------------------------------- plans
CT = make_fingerprint((60, 200, 200), channels=("CT", "PET"), kept=0.5)


@both
def test_a_plan_says_what_it_was_asked_for(scheme: Scheme) -> None:
    by_name, asked = plan(CT), plan(CT, normalization=scheme)
    for name, configuration in asked.configurations.items():
        for channel, fact in zip(configuration.normalization, CT.intensities, strict=True):
            assert channel == ChannelNormalization(scheme=scheme, within_nonzero=False, statistics=fact)
        assert configuration.networks == by_name.configurations[name].networks
        assert store_folder(Path(), name, store_record(asked, name)) != store_folder(
            Path(), name, store_record(by_name, name))
    assert with_normalization(by_name, scheme).configurations == asked.configurations
    about = [reason for reason in asked.reasons if reason.startswith("Normalization")]
    assert len(about) == 1 and scheme in about[0]
    assert about[0][:40] in " ".join(describe_plan(asked, CT).split())


@both
def test_an_existing_plan_keeps_its_normalization_until_another_is_asked_for(scheme: Scheme) -> None:
    first = plan(CT)
    assert add_architecture(first, CT, PlanSettings(architecture="resenc")) == first
    changed = add_architecture(first, CT, PlanSettings(architecture="plain", normalization=scheme))
    for configuration in changed.configurations.values():
        assert [channel.scheme for channel in configuration.normalization] == [scheme] * 2
        assert set(configuration.networks) == {"resenc", "plain"}
    kept = add_architecture(changed, CT, PlanSettings(architecture="plain"))
    assert kept == changed
    other: Scheme = "rank" if scheme == "percentile" else "percentile"
    back = add_architecture(changed, CT, PlanSettings(architecture="plain", normalization=other))
    assert sum(reason.startswith("Normalization") for reason in back.reasons) == 1


@both
def test_nnunets_numbers_do_not_go_with_a_normalization_that_it_lacks(scheme: Scheme) -> None:
    with pytest.raises(UserError, match="--nnunet-parity"):
        PlanSettings(normalization=scheme, nnunet_parity=True)
    with pytest.raises(UserError, match=rf"(?s){scheme}.*--run"):
        add_architecture(plan(CT, normalization=scheme), CT, PlanSettings(nnunet_parity=True))
    was_parity = plan(CT, nnunet_parity=True)
    assert not add_architecture(was_parity, CT, PlanSettings(normalization=scheme)).nnunet_parity


# ---------------------------------------------------------------- stores, predictions, images without labels
@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("normalization") / "dataset"
    write_dataset(folder)
    return open_dataset(folder)


def configurations(run: Path) -> dict[str, ConfigurationPlan]:
    return {str(name): entry for name, entry in read_plan(run).configurations.items()}


def test_plan_makes_another_store_beside_the_first(dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for options in ({}, {"normalization": "rank"}, {}):
        assert plan_command(dataset.root, run=run, workers=1, architecture="resenc", device="cpu", json=True,
                            configurations="3d_fullres", **options) == 0  # type: ignore[arg-type]
    assert {channel.scheme for entry in configurations(run).values() for channel in entry.normalization} == {"rank"}
    records = [json.loads(path.read_text()) for path in (run / "preprocessed/3d_fullres").glob("*/store.json")]
    assert sorted(record["normalization"][1]["scheme"] for record in records) == ["rank", "zscore"]


@pytest.fixture(params=SCHEMES)
def store(request: pytest.FixtureRequest, dataset: Dataset, tmp_path: Path) -> Store:
    fingerprint = make_fingerprint((16, 14, 12), channels=("T1", "T2"))
    record = store_record(plan(fingerprint, normalization=request.param), "3d_fullres")
    return open_store(preprocess_dataset(dataset, record, store_folder(tmp_path / "run", "3d_fullres", record), 1))


def test_what_a_prediction_sees_is_what_training_saw(store: Store, dataset: Dataset) -> None:
    """`prepare_image` goes by the record that the model keeps, whatever the run's plan has become."""
    case = dataset.cases[0]
    seen = prepare_image(read_image(case.images, 2), store.record).image
    stored = in_memory(open_case(store, case.id)).image
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored.astype(np.float32), seen, atol=SPAN * 2**-11)
    for channel, one in zip(read_image(case.images, 2).voxels, seen, strict=True):
        assert np.array_equal(one, normalized(channel.astype(np.float32), store.record.normalization[0].scheme))  # type: ignore[arg-type]


def test_resampling_stays_in_the_span(store: Store, dataset: Dataset) -> None:
    finer = store.record.model_copy(update={"spacing": (0.6, 0.7, 0.8)})
    image = prepare_image(read_image(dataset.cases[0].images, 2), finer).image
    assert image.min() >= 0 and image.max() <= SPAN


def test_images_to_pretrain_on_are_normalized_alike(store: Store, dataset: Dataset, tmp_path: Path) -> None:
    """Those of the run come from its store; added ones are prepared by its record."""
    own = image_sources(dataset.cases, store)
    extra = added(dataset.root / "imagesTr", store, tmp_path / "run")
    assert len(own) == len(extra) > 0
    for source in extra[:2]:
        twin = source.open().image[:]
        assert any(np.array_equal(twin, one.open().image[:]) for one in own)
