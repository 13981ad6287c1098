"""Words reach a training by name, act by a weight that rises, and a training goes on with its own words only."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from test_feature_maps import Example, image_of, plan_of
from test_planner import make_fingerprint, plan
from torch import Tensor

from autoseg.data.store import Store
from autoseg.errors import UserError
from autoseg.guidance.banks import label_vectors, open_bank
from autoseg.guidance.records import TowerRecord
from autoseg.guidance.text_bank import centered, make_bank, write_bank
from autoseg.networks.builder import build_network
from autoseg.networks.checkpoint import save_resume
from autoseg.networks.segmenter import Segmenter
from autoseg.planning.planner import store_record
from autoseg.schema import Plan
from autoseg.training import session as session_module
from autoseg.training.guiding import Guide, Words, read_words
from autoseg.training.session import Session, train_session
from autoseg.training.settings import GuidanceSettings, TrainSettings
from autoseg.training.targets import Targets, label_members

TOWER = TowerRecord(name="tiny", kind="clip", sha256="0" * 64, licence="CC0")
EXAMPLE = Example("plain", (1.0, 1.0), (64, 96))
LABELS = ("liver", "left kidney", "right kidney")
MANY = ("spleen", "aorta", "pancreas")


def plan_with(*names: str) -> Plan:
    return plan(make_fingerprint((1, 64, 64), names=names, channels=("CT",)), configurations=("2d",))


PLANNED = plan_with(*LABELS)


def bank_at(folder: Path, names: tuple[str, ...] = LABELS + MANY, seed: int = 0) -> str:
    rows = np.random.default_rng(seed).standard_normal((len(names), 12)) + 1
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    write_bank(make_bank(rows, {name: (f"The {name}.",) for name in names}, TOWER), folder)
    return str(folder)


def guided(**changes: object) -> TrainSettings:
    return replace(TrainSettings(text_guided=True), **changes)


# ---------------------------------------------------------------- words
def test_vectors_are_those_of_the_labels_by_name(tmp_path: Path) -> None:
    words = read_words(PLANNED, bank_at(tmp_path / "bank"), guided(), 3)
    bank = open_bank(tmp_path / "bank")
    raw, _ = label_vectors(bank, LABELS, PLANNED.name, PLANNED.channel_names)
    np.testing.assert_array_equal(words.vectors, centered(raw))
    facts = words.facts
    assert facts.names == facts.matched == LABELS and facts.distractors == MANY and len(words.distractors) == 3
    assert (facts.route, facts.geometry, facts.tensors_sha256) == ("alignment", "centred", None)
    assert (facts.bank_sha256, facts.tower, facts.tower_sha256) == (bank.record.sha256, "tiny", "0" * 64)


@pytest.mark.parametrize("geometry", ["centred", "raw"])
def test_the_order_of_labels_is_the_order_of_rows_and_nothing_more(tmp_path: Path, geometry: str) -> None:
    bank, settings = bank_at(tmp_path / "bank"), guided(text_geometry=geometry)
    first = read_words(PLANNED, bank, settings, 3)
    turned = read_words(plan_with(*(LABELS[row] for row in (2, 0, 1))), bank, settings, 3)
    np.testing.assert_allclose(turned.vectors, first.vectors[[2, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(turned.distractors, first.distractors, atol=1e-6)


def test_swapping_two_names_swaps_their_words(tmp_path: Path) -> None:
    bank = bank_at(tmp_path / "bank")
    first = read_words(PLANNED, bank, guided(), 3).vectors
    swapped = read_words(plan_with("liver", "right kidney", "left kidney"), bank, guided(), 3).vectors
    np.testing.assert_allclose(swapped, first[[0, 2, 1]], atol=1e-6)
    assert np.abs(swapped - first).max() > 0.1


def test_labels_of_a_dataset_are_found_in_autosegs_own_bank() -> None:
    words = read_words(plan_with("Liver", "LK", "kidney_right"), None, guided(), 3)
    assert words.facts.matched == ("liver", "left kidney", "right kidney") and len(words.distractors) == 24
    assert words.facts.names == ("Liver", "LK", "kidney_right")


@pytest.mark.parametrize(("route", "geometry", "count", "expected"), [
    ("heads", "centred", 24, 0), ("gram", "centred", 24, 0), ("alignment", "random", 24, 0),
    ("alignment", "learned", 24, 0), ("alignment", "raw", 2, 2), ("alignment", "shuffled", 0, 0),
])  # fmt: skip
def test_distractors_stand_where_words_are_candidates(
    tmp_path: Path, route: str, geometry: str, count: int, expected: int
) -> None:
    settings = guided(text_route=route, text_geometry=geometry, guidance=GuidanceSettings(distractors=count))
    words = read_words(PLANNED, bank_at(tmp_path / "bank"), settings, 3)
    assert len(words.distractors) == len(words.facts.distractors) == expected
    assert words.vectors.shape[1] == words.distractors.shape[1]


@pytest.mark.parametrize("names", [("liver",), ("liver", "spleen")])
def test_angles_between_fewer_than_three_labels_say_nothing_and_are_refused(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    bank = bank_at(tmp_path / "bank")
    with pytest.raises(UserError, match=f"at least 3 labels; this dataset has {len(names)}"):
        read_words(plan_with(*names), bank, guided(text_route="gram"), 3)
    assert len(read_words(plan_with(*names), bank, guided(text_geometry="raw"), 3).vectors) == len(names)
    assert len(read_words(PLANNED, bank, guided(text_route="gram"), 3).vectors) == 3


def test_shuffled_words_swap_the_sides_of_the_plan(tmp_path: Path) -> None:
    planned, bank = plan_with("left kidney", "right kidney", "liver", "spleen"), bank_at(tmp_path / "bank")
    assert planned.sided_labels == (("left kidney", "right kidney"),)
    straight, shuffled = (read_words(planned, bank, guided(text_geometry=geometry), 3).vectors
                          for geometry in ("centred", "shuffled"))
    np.testing.assert_array_equal(shuffled, straight[[1, 0, 3, 2]])


def test_sides_that_words_hardly_part_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = np.eye(3, 12, dtype=np.float32)
    rows[2] = (rows[1] + 0.1 * rows[2]) / np.linalg.norm(rows[1] + 0.1 * rows[2])
    write_bank(make_bank(rows, {name: (f"The {name}.",) for name in LABELS}, TOWER), tmp_path / "bank")
    with caplog.at_level(logging.WARNING, "autoseg"):
        words = read_words(PLANNED, str(tmp_path / "bank"), guided(), 3)
    assert "left kidney and right kidney" in caplog.text
    assert words.vectors[1] @ words.vectors[2] < 0.95 and words.vectors.shape == (3, 13)


def test_sentences_that_the_bank_does_not_stand_for_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bank, prompts = bank_at(tmp_path / "bank"), tmp_path / "prompts.json"
    written = {name: [f"The {name}."] for name in LABELS}
    for sentences, said in ((written, False), (written | {"liver": ["A brown organ."]}, True)):
        prompts.write_text(json.dumps(sentences), encoding="utf-8")
        with caplog.at_level(logging.WARNING, "autoseg"):
            read_words(PLANNED, bank, guided(), 3, prompts)
        assert ("the sentences of liver are not" in caplog.text) is said
    assert "--text-bank" in caplog.text


# ---------------------------------------------------------------- what is refused
def test_labels_that_the_bank_lacks_or_that_say_nothing_are_refused(tmp_path: Path) -> None:
    bank = bank_at(tmp_path / "bank", ("liver", "left kidney"))
    with pytest.raises(UserError, match="'right kidney'") as caught:
        read_words(PLANNED, bank, guided(), 3)
    assert "1 of 3 labels" in str(caught.value) and "'liver'" not in str(caught.value)
    with pytest.raises(UserError, match="'label_1'.*\n.*'label_2'"):
        read_words(plan_with("label_1", "liver", "label_2"), None, guided(), 3)


def test_one_label_cannot_be_centered_and_can_be_raw(tmp_path: Path) -> None:
    bank, one = bank_at(tmp_path / "bank"), plan_with("liver")
    with pytest.raises(UserError, match="--text-geometry raw"):
        read_words(one, bank, guided(), 3)
    words = read_words(one, bank, guided(text_geometry="raw"), 3)
    assert words.vectors.shape == (1, 12) and words.facts.distractors == ("left kidney", "right kidney", *MANY)


def test_a_bank_edited_by_hand_is_refused_by_name(tmp_path: Path) -> None:
    bank = bank_at(tmp_path / "mine")
    path = tmp_path / "mine/bank.safetensors"
    vectors = safetensors.numpy.load_file(path)["vectors"]
    path.write_bytes(safetensors.numpy.save({"vectors": np.ascontiguousarray(vectors[::-1])}))
    with pytest.raises(UserError, match="mine.*edited or replaced"):
        read_words(PLANNED, bank, guided(), 3)
    with pytest.raises(UserError, match="no/bank"):
        read_words(PLANNED, "no/bank", guided(), 3)


# ---------------------------------------------------------------- the guide
def words_of(settings: TrainSettings, folder: Path) -> Words:
    return read_words(PLANNED, bank_at(folder / "bank"), settings, 3)


def guide_of(settings: TrainSettings, folder: Path) -> tuple[Guide, Segmenter]:
    torch.manual_seed(5)
    planned = plan_of(EXAMPLE)
    network = build_network(EXAMPLE.architecture, planned, 2, len(LABELS) + 1)
    return Guide(words_of(settings, folder), network, planned, 2, settings, 7, Targets(label_members(4))), network


def labels_of() -> Tensor:
    cells = torch.randint(0, 4, (2, 4, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return cells.repeat_interleave(16, 1).repeat_interleave(16, 2)


@pytest.mark.parametrize(("share", "ramp", "expected"), [
    (0.0, 0.1, 0.0), (0.05, 0.1, 0.1), (0.1, 0.1, 0.2), (0.7, 0.1, 0.2), (1.0, 0.1, 0.2), (0.0, 0.0, 0.2),
    (0.5, 1.0, 0.1),
])  # fmt: skip
def test_the_weight_rises_linearly_and_stays(tmp_path: Path, share: float, ramp: float, expected: float) -> None:
    guide, network = guide_of(guided(guidance=GuidanceSettings(weight=0.2, ramp_share=ramp)), tmp_path)
    assert guide.weight(share) == pytest.approx(expected)
    _, maps = guide(network, image_of(EXAMPLE))
    (found, _), (full, _) = guide.loss(maps, labels_of(), share, None), guide.loss(maps, labels_of(), 1.0, None)
    assert found.item() == pytest.approx(full.item() * expected / 0.2, abs=1e-6)


@pytest.mark.parametrize("route", ["alignment", "gram"])
@pytest.mark.parametrize("value", [0, 1])
def test_patches_of_one_class_give_a_finite_loss_and_gradients(tmp_path: Path, route: str, value: int) -> None:
    guide, network = guide_of(guided(text_route=route), tmp_path)
    labels = torch.full((2, *EXAMPLE.patch), value, dtype=torch.uint8)
    _, maps = guide(network, image_of(EXAMPLE))
    loss, view = guide.loss(maps, labels, 1.0, None)
    _, again = guide(network, image_of(EXAMPLE).flip(1))
    second, _ = guide.loss(again, labels, 1.0, view)
    (loss + second).backward()
    assert loss.isfinite() and second.isfinite()
    assert all(one.grad is None or one.grad.isfinite().all() for one in (*network.parameters(), *guide.parameters()))


def test_logits_are_the_networks_own_and_the_loss_reaches_its_features(tmp_path: Path) -> None:
    guide, network = guide_of(guided(), tmp_path)
    logits, maps = guide(network, image_of(EXAMPLE))
    assert all(map(torch.equal, logits, network.forward_all(image_of(EXAMPLE))))
    loss, view = guide.loss(maps, labels_of(), 1.0, None)
    loss.backward()
    assert loss > 0 and not view.embeddings.requires_grad
    assert all(one.grad is not None and one.grad.any() for one in guide.parameters())
    assert any(one.grad is not None and one.grad.any() for one in network.parameters())


def test_half_precision_forward_passes_give_the_loss_in_float32(tmp_path: Path) -> None:
    guide, network = guide_of(guided(), tmp_path)
    exact, _ = guide.loss(guide(network, image_of(EXAMPLE))[1], labels_of(), 1.0, None)
    with torch.autocast("cpu", torch.bfloat16):
        maps = guide(network, image_of(EXAMPLE))[1]
        found, view = guide.loss(maps, labels_of(), 1.0, None)
    assert found.dtype == view.embeddings.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.05)


def test_views_alone_need_a_second_view(tmp_path: Path) -> None:
    """`text_weight` 0 is the control without words."""
    guide, network = guide_of(guided(guidance=GuidanceSettings(text_weight=0.0)), tmp_path)
    first, view = guide.loss(guide(network, image_of(EXAMPLE))[1], labels_of(), 1.0, None)
    second, _ = guide.loss(guide(network, image_of(EXAMPLE).flip(1))[1], labels_of(), 1.0, view)
    assert first == 0 and first.requires_grad and second > 0


def test_heads_have_no_loss_of_their_own(tmp_path: Path) -> None:
    guide, network = guide_of(guided(text_route="heads"), tmp_path)
    logits, maps = guide(network, image_of(EXAMPLE))
    assert guide.loss(maps, labels_of(), 1.0, None) == (None, None) and logits[0].shape == (2, 4, *EXAMPLE.patch)


def test_learned_vectors_of_heads_are_no_words(tmp_path: Path) -> None:
    learned, _ = guide_of(guided(text_route="heads", text_geometry="learned"), tmp_path)
    words, _ = guide_of(guided(text_route="heads", text_geometry="raw"), tmp_path)
    assert learned.heads is not None and words.heads is not None
    own = learned.heads.vectors
    assert isinstance(own, torch.nn.Parameter) and not torch.allclose(own, words.heads.vectors)
    torch.stack([one.square().mean() for one in learned.heads.kernels().values()]).sum().backward()
    assert own.grad is not None and own.grad.any()


def test_learned_vectors_are_the_guides_own(tmp_path: Path) -> None:
    guide, _ = guide_of(guided(text_geometry="learned"), tmp_path)
    assert guide.alignment is not None and guide.alignment.vectors.requires_grad
    same, _ = guide_of(guided(text_geometry="learned"), tmp_path)
    assert torch.equal(guide.alignment.vectors, same.alignment.vectors)


# ---------------------------------------------------------------- resuming
def begun_session(folder: Path, words: Words | None, settings: TrainSettings) -> Session:
    """A training whose state is on disk; its store holds no case, because refusing needs none."""
    network = PLANNED.configurations["2d"].networks["resenc"]
    store = Store(folder / "store", store_record(PLANNED, "2d"), {})
    session = Session(
        plan=PLANNED, configuration="2d", architecture="resenc", name="test", fold="0", settings=settings,
        optimizer=network.optimizer, seed=5, store=store, train_ids=("a",), validation_ids=(),
        folder=folder, device=torch.device("cpu"), versions={}, words=words,
    )
    layer = torch.nn.Linear(1, 1)
    save_resume(folder / "resume", layer, torch.optim.SGD(layer.parameters(), 0.1),
                torch.amp.GradScaler("cpu", enabled=False), session_module._facts(session))
    return session


def test_a_training_goes_on_with_its_own_words_only(tmp_path: Path) -> None:
    first = read_words(PLANNED, bank_at(tmp_path / "bank"), guided(), 3)
    same = read_words(PLANNED, bank_at(tmp_path / "copy"), guided(), 3)
    other = read_words(PLANNED, bank_at(tmp_path / "other", seed=1), guided(), 3)
    begun = begun_session(tmp_path, first, guided())
    session_module._matching_facts(replace(begun, words=same))
    with pytest.raises(UserError, match="--text-bank") as caught:
        train_session(replace(begun, words=other), True, lambda _: False)
    assert "--text-guided" not in str(caught.value) and "--overwrite" in str(caught.value)
    for settings, words in ((TrainSettings(), None), (guided(text_geometry="raw"), first),
                            (guided(text_route="gram"), first)):
        with pytest.raises(UserError, match="--text-guided"):
            train_session(replace(begun, words=words, settings=settings), True, lambda _: False)


def test_a_training_without_words_does_not_go_on_with_words(tmp_path: Path) -> None:
    begun = begun_session(tmp_path, None, TrainSettings())
    words = read_words(PLANNED, bank_at(tmp_path / "bank"), guided(), 3)
    with pytest.raises(UserError, match="(?s)--text-guided.*--text-bank"):
        train_session(replace(begun, words=words, settings=guided()), True, lambda _: False)
