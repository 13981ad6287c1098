"""Which images a pretraining sees: no label file, no validation image, no copy of one; and what it knows of them."""

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_planner import make_fingerprint, plan

from autoseg.data.dataset import Case, Dataset, list_images, open_dataset
from autoseg.data.preprocessing import preprocess_dataset
from autoseg.data.store import Store, in_memory, open_case, open_store, open_unlabelled, store_folder
from autoseg.errors import UserError
from autoseg.initialization import measurement
from autoseg.initialization.images import (
    ImageSet,
    ImageSource,
    InspectedImage,
    _statistics,
    gather_images,
    hold_back,
    image_sources,
    prepare_extra_images,
    refuse_known,
    refuse_too_few,
)
from autoseg.initialization.measurement import measure
from autoseg.initialization.pretext import plan_pretext
from autoseg.initialization.pretraining import InitSession, image_patches, pretrain
from autoseg.initialization.record import SeenImage
from autoseg.initialization.schedule import Plateau, pretraining_optimizer
from autoseg.planning.planner import store_record
from autoseg.schema import ConfigurationName, IntensityStatistics, Plan, StoreRecord
from autoseg.training.draws import DrawSettings
from autoseg.training.session import replace_record
from autoseg.training.settings import TrainSettings

SHAPE = (12, 14, 16)  # x, y, z in the file
CASES, VALIDATION = 8, ("case6", "case7")
CHANNELS = ("T1", "T2")


# ---------------------------------------------------------------- a tiny dataset
def save(volume: np.ndarray, path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


def write_dataset(root: Path) -> None:
    """Eight cases of two channels with different means and deviations, and a box for a label."""
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for case in range(CASES):
        for channel, (mean, deviation) in enumerate(((40, 5), (-3, 0.5))):
            voxels = rng.normal(mean + case, deviation, SHAPE).astype(np.float32)
            save(voxels, root / f"imagesTr/case{case}_{channel:04}.nii.gz")
        label = np.zeros(SHAPE, np.uint8)
        label[4:8, 4:9, 5:9] = 10
        save(label, root / f"labelsTr/case{case}.nii.gz")
    (root / "dataset.json").write_text(json.dumps({
        "channel_names": dict(enumerate(CHANNELS)), "labels": {"background": 0, "organ": 10}, "numTraining": CASES,
        "file_ending": ".nii.gz"}))


def make_plan(root: Path) -> Plan:
    """A network of four channels at most, without normalization: so that statistics are not 0 and 1."""
    decided = plan(make_fingerprint(SHAPE[::-1], channels=CHANNELS), architecture="resenc")
    configurations = {}
    for name, entry in decided.configurations.items():
        network = entry.networks["resenc"]
        topology = network.topology.model_copy(update={
            "features": (4,) * len(network.topology.features), "encoder_blocks": (1,) * len(network.topology.features)})
        networks = {"resenc": replace_record(network, topology=topology, batch_size=2)}
        plainly = tuple(one.model_copy(update={"scheme": "nonorm"}) for one in entry.normalization)
        configurations[name] = entry.model_copy(update={"networks": networks, "normalization": plainly})
    return decided.model_copy(update={"dataset": str(root), "configurations": configurations})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("init") / "dataset"
    write_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(root) -> Dataset:
    return open_dataset(root)


@pytest.fixture(scope="module")
def decided(root) -> Plan:
    return make_plan(root)


def prepare(dataset: Dataset, decided: Plan, run: Path, configuration: ConfigurationName = "3d_fullres") -> Store:
    record = store_record(decided, configuration)
    return open_store(preprocess_dataset(dataset, record, store_folder(run, configuration, record), 1))


@pytest.fixture(scope="module")
def store(dataset, decided, tmp_path_factory) -> Store:
    return prepare(dataset, decided, tmp_path_factory.mktemp("run"))


def split(dataset: Dataset) -> tuple[list[Case], list[Case]]:
    return ([case for case in dataset.cases if case.id not in VALIDATION],
            [case for case in dataset.cases if case.id in VALIDATION])


def gathered(dataset: Dataset, store: Store, extra: list[ImageSource] | None = None, seed: int = 3) -> ImageSet:
    training, validation = (image_sources(cases, store) for cases in split(dataset))
    return gather_images(training, validation if extra else [], extra or [], seed, 1)


def added(folder: Path, store: Store, run: Path) -> list[ImageSource]:
    """The images of a folder, prepared as --extra-images are."""
    return prepare_extra_images(list_images(folder, 2, ".nii.gz"), run, "3d_fullres", store.record, 1)


# ---------------------------------------------------------------- what is held back
def some_sources(count: int) -> list[ImageSource]:
    empty = Store(Path(), StoreRecord(axes=(0, 1, 2), spacing=(1.0, 1.0, 1.0), normalization=(), labels={}), {})
    return [ImageSource(Case(f"case{number}", (), None), empty) for number in range(count)]


@given(st.integers(0, 200), st.integers(0, 100))
def test_a_tenth_is_held_back_at_most_eight_and_none_of_few(count: int, seed: int) -> None:
    sources = some_sources(count)
    kept = hold_back(sources, seed)
    assert len(kept) == (0 if count < 5 else min(8, max(1, round(count / 10))))
    assert kept == hold_back(sources, seed) and len({one.id for one in kept}) == len(kept)
    assert {one.id for one in kept} <= {one.id for one in sources}


def test_held_back_images_are_drawn_from_the_seed() -> None:
    sources = some_sources(20)
    assert len({tuple(one.id for one in hold_back(sources, seed)) for seed in range(10)}) > 5


def test_held_back_images_are_not_learned_from(dataset, store) -> None:
    images = gathered(dataset, store)
    trained, measured = ({one.id for one in some} for some in (images.training, images.held_back))
    assert len(measured) == 1 and not trained & measured
    assert trained | measured == {case.id for case in split(dataset)[0]}
    assert images.own == images.training and images.extra == () and set(images.seen) == trained | measured


# ---------------------------------------------------------------- what is known of them
def test_hashes_are_those_of_the_files(dataset, store) -> None:
    images = gathered(dataset, store)
    for case in split(dataset)[0]:
        expected = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in case.images)
        assert images.seen[case.id].sha256 == expected and images.seen[case.id].id == case.id and len(expected) == 2
    assert [one.id for one in images.identities(images.training)] == [one.id for one in images.training]


def test_means_and_deviations_are_those_of_all_voxels_learned_from(dataset, store) -> None:
    images = gathered(dataset, store)
    voxels = np.concatenate([in_memory(open_case(store, one.id)).image.astype(np.float64).reshape(2, -1)
                             for one in images.training], axis=1)
    np.testing.assert_allclose(images.means, voxels.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(images.deviations, voxels.std(axis=1), rtol=1e-6)
    assert images.means[0] > 40 and images.means[1] > -3, "not normalized in this plan"


def test_a_channel_that_never_varies_has_deviation_one(dataset, decided, tmp_path) -> None:
    copy_images(dataset, tmp_path / "dataset", lambda case, channel, voxels: voxels * 0 + 7 if channel else voxels)
    flat = open_dataset(tmp_path / "dataset")
    images = gathered(flat, prepare(flat, decided, tmp_path))
    assert images.means[1] == pytest.approx(7) and images.deviations[1] == 1 and images.deviations[0] > 4


@pytest.mark.parametrize("value", [70000.3, 1000000.1])
def test_rounding_of_sums_is_no_variance(value: float) -> None:
    """Of large values sums of squares leave some: a deviation of 0.001 at 70,000."""
    found = []
    for slices in (50, 37, 37):
        image = np.full((slices, 60, 61), value, np.float32)
        sums = (float(image.sum(dtype=np.float64)),)
        squares = (float(sum(np.square(part, dtype=np.float64).sum() for part in image)),)
        found.append(InspectedImage(SeenImage(id="a", sha256=()), "", True, sums, squares, image.size))
    means, deviations = _statistics(found)
    assert means == (pytest.approx(value, rel=1e-6),) and deviations == (1.0,)


def copy_images(dataset: Dataset, root: Path, change) -> None:
    write_dataset(root)
    for case in dataset.cases:
        for channel, path in enumerate(case.images):
            voxels = nibabel.load(path).get_fdata(dtype=np.float32)
            save(change(case.id, channel, voxels), root / "imagesTr" / path.name)


# ---------------------------------------------------------------- images that are refused
def test_constant_images_are_refused_by_name(dataset, decided, tmp_path) -> None:
    copy_images(dataset, tmp_path / "dataset",
                lambda case, channel, voxels: voxels * 0 + 7 if case in ("case1", "case4") else voxels)
    flat = open_dataset(tmp_path / "dataset")
    with pytest.raises(UserError) as caught:
        gathered(flat, prepare(flat, decided, tmp_path))
    message = str(caught.value)
    assert "case1_0000.nii.gz" in message and "case4_0000.nii.gz" in message and "case0" not in message
    assert "every voxel has the same value" in message


@pytest.mark.parametrize("scheme", ["ct", "zscore", "rescale_to_0_1"])
def test_constant_images_are_found_after_normalization_and_resampling(dataset, decided, tmp_path, scheme) -> None:
    copy_images(dataset, tmp_path / "dataset",
                lambda case, channel, voxels: voxels * 0 + 73.3 if case == "case1" else voxels)
    flat = open_dataset(tmp_path / "dataset")
    statistics = IntensityStatistics(mean=40, median=40, std=5, min=0, max=99, percentile_00_5=5, percentile_99_5=90)
    changed = decided.model_copy(update={"configurations": {name: entry.model_copy(update={
        "spacing": tuple(0.7 * step for step in entry.spacing),
        "normalization": tuple(one.model_copy(update={"scheme": scheme, "statistics": statistics})
                               for one in entry.normalization)})
        for name, entry in decided.configurations.items()}})
    with pytest.raises(UserError, match="case1_0000"):
        gathered(flat, prepare(flat, changed, tmp_path))


def test_added_images_under_names_of_the_fold_are_refused(dataset, tmp_path) -> None:
    training, validation = ([case.id for case in cases] for cases in split(dataset))
    new = Case("new", (tmp_path / "new_0000.nii.gz",), None)
    leaked, known = (Case(one, (tmp_path / f"{one}_0000.nii.gz",), None) for one in ("case7", "case2"))
    refuse_known([new], training, validation)
    with pytest.raises(UserError, match=r"(?s)validates on.*case7_0000.*'case7' is a validation case.*Move them"):
        refuse_known([new, leaked], training, validation)
    with pytest.raises(UserError, match=r"(?s)case2_0000.*'case2' is a training case.*rename"):
        refuse_known([new, known], training, validation)
    with pytest.raises(UserError, match="validates on") as caught:
        refuse_known([leaked, known], training, validation)
    assert "case2" not in str(caught.value) and "new_0000" not in str(caught.value)


def as_it_is(path: Path, target: Path) -> None:
    target.write_bytes(path.read_bytes())


def compressed_again(path: Path, target: Path) -> None:
    target.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))


def as_another_type(path: Path, target: Path) -> None:
    save(nibabel.load(path).get_fdata(dtype=np.float64), target)


@pytest.mark.parametrize("copy", [as_it_is, compressed_again, as_another_type])
def test_a_renamed_copy_of_a_validation_image_is_refused_by_name(dataset, store, tmp_path, copy) -> None:
    folder = tmp_path / "extra"
    folder.mkdir()
    for case, name in (("case0", "innocent"), ("case7", "stranger")):
        for path in next(one for one in dataset.cases if one.id == case).images:
            copy(path, folder / path.name.replace(case, name))
    assert [one.id for one in added(folder, store, tmp_path)] == ["innocent", "stranger"]
    with pytest.raises(UserError) as caught:
        gathered(dataset, store, added(folder, store, tmp_path))
    message = str(caught.value)
    assert "stranger_0000.nii.gz: the same voxels as validation case 'case7'" in message and "innocent" not in message


def test_other_added_images_are_learned_from(dataset, store, tmp_path) -> None:
    folder, rng = tmp_path / "extra", np.random.default_rng(5)
    folder.mkdir()
    for channel in range(2):
        save(rng.normal(90, 1, SHAPE).astype(np.float32), folder / f"more_{channel:04}.nii.gz")
    images = gathered(dataset, store, added(folder, store, tmp_path))
    assert [one.id for one in images.extra] == ["more"] and images.extra_count == 1
    assert "more" not in {one.id for one in images.own} and not set(VALIDATION) & set(images.seen)
    assert images.seen["more"].sha256[0] == hashlib.sha256((folder / "more_0000.nii.gz").read_bytes()).hexdigest()
    assert images.means[0] > gathered(dataset, store).means[0] + 1, "they count in the means"
    assert images.extra[0].open().image.shape == (2, *SHAPE[::-1])
    assert {one.id for one in images.held_back} <= {case.id for case in dataset.cases}, "but are not measured on"


def test_broken_added_images_are_refused_together(store, tmp_path) -> None:
    folder = tmp_path / "extra"
    folder.mkdir()
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        (folder / f"{name}.nii.gz").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"(?s)2 of 2 images.*a_0000.*b_0000"):
        added(folder, store, tmp_path)


@pytest.mark.parametrize(("configuration", "enough", "too_many", "what"), [
    ("3d_fullres", 6, 7, "Images"), ("2d", 6 * 16, 6 * 16 + 1, "Slices"),
])  # fmt: skip
def test_fewer_images_than_a_batch_are_refused(dataset, store, configuration, enough, too_many, what) -> None:
    sources = tuple(image_sources(split(dataset)[0], store))
    images = replace(gathered(dataset, store), training=sources, held_back=())
    refuse_too_few(images, enough, configuration == "2d")
    with pytest.raises(UserError, match=f"{what} to learn from: {enough}; a batch holds {too_many}"):
        refuse_too_few(images, too_many, configuration == "2d")
    with pytest.raises(UserError, match=r"\(images held back to measure on: 1\)"):
        refuse_too_few(replace(images, held_back=sources[:1]), too_many, configuration == "2d")


def test_an_image_that_the_store_lacks_is_an_error(dataset, store) -> None:
    with pytest.raises(UserError, match="lacks stranger"):
        image_sources([Case("stranger", (), None), *dataset.cases], store)


# ---------------------------------------------------------------- no labels, no validation images
def forget_labels(dataset: Dataset, store: Store) -> None:
    """Remove every file of labels or made from them, and every validation image, from the disk."""
    for case in dataset.cases:
        assert case.label is not None
        gone = [case.label, *(store.folder / f"{case.id}{ending}" for ending in (".labels.b2nd", ".foreground.npy"))]
        if case.id in VALIDATION:
            gone += [*case.images, store.folder / f"{case.id}.b2nd", store.folder / f"{case.id}.json"]
        for path in gone:
            path.unlink()
    left = {path.name for folder in (dataset.root, store.folder) for path in folder.rglob("*") if path.is_file()}
    assert not any(word in name for name in left for word in ("labels", "foreground", *VALIDATION))


@pytest.fixture
def bare(decided, tmp_path) -> tuple[Dataset, Store]:
    """A dataset and its store, prepared; then everything but the training images is deleted."""
    write_dataset(tmp_path / "dataset")
    dataset = open_dataset(tmp_path / "dataset")
    store = prepare(dataset, decided, tmp_path)
    forget_labels(dataset, store)
    return dataset, store


def test_an_image_opens_without_its_labels_and_has_no_foreground(bare) -> None:
    dataset, store = bare
    for case in split(dataset)[0]:
        opened = open_unlabelled(store, case.id)
        assert opened.image.shape[1:] == opened.labels.shape == SHAPE[::-1]
        assert (opened.labels == 1).all() and opened.labels.strides == (0, 0, 0), "inside; no memory either"
        assert len(opened.foreground) == 0 and opened.info.class_counts == ()
        assert opened.info.foreground_offsets == (0,)


def make_session(decided: Plan, store: Store, images: ImageSet, folder: Path, **changes: object) -> InitSession:
    """As `autoseg pretrain-init` makes one."""
    settings = TrainSettings(precision="float32")
    network = decided.configurations["3d_fullres"].networks["resenc"]
    asked = InitSession(
        plan=decided, configuration="3d_fullres", architecture="resenc", name="tiny", fold="0", method="lwi",
        pretext=plan_pretext("resenc", network, "lwi"), settings=settings,
        optimizer=pretraining_optimizer("resenc", settings), steps=4, max_minutes=None, seed=2, store=store.record,
        images=images, extra_folder=None, folder=folder, device=torch.device("cpu"), versions={},
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("caching", ["resident", "streamed"])
def test_pretraining_and_its_measures_need_training_images_alone(
    bare, decided, tmp_path, monkeypatch, caching
) -> None:
    dataset, store = bare
    images = gather_images(image_sources(split(dataset)[0], store), [], [], 1, 1)
    refuse_too_few(images, 2, False)
    settings = TrainSettings(precision="float32", caching=caching)
    session = make_session(decided, store, images, tmp_path / "init", settings=settings)
    ended = pretrain(session, False, lambda _: False)
    assert ended is not None and ended[1].step == 4 and ended[1].ended_by == "steps"
    monkeypatch.setattr(measurement, "PATCHES", 4)
    measures, examples = measure(session, ended[0], ended[2])
    assert measures.held_back and measures.images == tuple(one.id for one in images.held_back)
    assert measures.masked_error is not None and measures.masked_error > 0
    assert measures.order_accuracy is not None and 0 <= measures.order_accuracy <= 1
    assert len(examples) == 2 and not set(VALIDATION) & set(images.seen)


def test_patches_know_where_their_image_ends_and_nothing_else_of_labels(bare, decided, tmp_path) -> None:
    """Turned and mirrored too: without intensity changes, a padded voxel is 0 and an image's voxel is not."""
    dataset, store = bare
    images = gather_images(image_sources(split(dataset)[0], store), [], [], 1, 1)
    session = make_session(decided, store, images, tmp_path / "init")
    seen, padded = set(), 0
    draws = DrawSettings(seed=0, foreground_fraction=0.0, mirror_axes=(1, 2), augment=False)
    for augment in (False, True):
        with image_patches(session, images.training, replace(draws, augment=augment)) as patches:
            for step in range(12):
                batch = patches.batch(step)
                inside = batch.labels > 0
                assert set(batch.labels.unique().tolist()) <= {0, 1}
                if not augment:
                    assert torch.equal(inside, (batch.image != 0).any(1)), "the images hold no zeros"
                seen |= set(batch.case_ids)
                padded += int((~inside).sum())
    assert seen == {one.id for one in images.training} and padded


def test_resident_and_streamed_images_teach_the_same(dataset, store, decided, tmp_path) -> None:
    images = gathered(dataset, store)
    taught = []
    for caching in ("resident", "streamed"):
        settings = TrainSettings(precision="float32", caching=caching)
        ended = pretrain(make_session(decided, store, images, tmp_path / caching, settings=settings), False,
                         lambda _: False)
        assert ended is not None
        taught.append(ended[0].state_dict())
    assert all(torch.equal(value, taught[1][name]) for name, value in taught[0].items())


def test_a_pretraining_that_is_resumed_equals_an_unbroken_one(dataset, store, decided, tmp_path) -> None:
    images = gathered(dataset, store)
    whole, parts = (make_session(decided, store, images, tmp_path / name) for name in ("whole", "parts"))
    first = pretrain(whole, False, lambda _: False)
    assert pretrain(parts, False, lambda step: step == 2) is None
    torch.manual_seed(5)
    second = pretrain(parts, True, lambda _: False)
    assert first is not None and second is not None
    for name, value in first[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name
    assert (first[1].step, first[1].plateau, first[1].masked_error) == (
        second[1].step, second[1].plateau, second[1].masked_error)
    for other, word in ((replace(parts, seed=8), "--seed"), (replace(parts, method="mim"), "--method"),
                        (replace(parts, steps=9), "--steps"),
                        (replace(parts, images=replace(images, training=images.training[1:])), "the images")):
        with pytest.raises(UserError, match=f"another setting of {word}"):
            pretrain(other, True, lambda _: False)


def test_a_pretraining_that_ended_at_a_plateau_stays_ended(dataset, store, decided, tmp_path, monkeypatch) -> None:
    """Resumed, because it was killed before its record was written."""
    monkeypatch.setattr(Plateau, "update", lambda self, error, step, steps: step == 2)
    session = make_session(decided, store, gathered(dataset, store), tmp_path / "init", steps=50)
    first, again = (pretrain(session, resume, lambda _: False) for resume in (False, True))
    assert first is not None and again is not None and first[1].ended_by == again[1].ended_by == "plateau"
    assert first[1].step == again[1].step < 50


def test_pretraining_moves_every_weight_of_the_backbone(dataset, store, decided, tmp_path) -> None:
    """The heads of the network itself stay as they were drawn; the mask's value is learned too."""
    images = gathered(dataset, store)
    session = make_session(decided, store, images, tmp_path / "init")
    before = pretrain(replace(session, steps=1, folder=tmp_path / "one"), False, lambda _: False)
    after = pretrain(session, False, lambda _: False)
    assert before is not None and after is not None
    for name, value in after[0].named_parameters():
        inner = name.removeprefix("network.")
        is_head = name.startswith("network.") and after[0].network.is_task_head(inner)
        moved = not torch.equal(value, before[0].get_parameter(name))
        if value.numel() > 4 or is_head:  # of a few numbers all may have a gradient of zero
            assert moved != is_head, name
