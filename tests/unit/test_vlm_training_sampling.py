"""The order of pairs: every pair as often as its source's share says, whatever the epoch that is asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import UserError
from vlm.training.sampling import epoch_order, quotas, shuffled, source_probabilities, steps_per_epoch


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 1000), min_size=1), st.floats(0, 1))
def test_probabilities_are_proportional_to_a_power_of_the_size(sizes, alpha):
    found = source_probabilities(sizes, alpha, None)
    assert found.sum() == pytest.approx(1)
    for one, p in zip(sizes.values(), found, strict=True):
        for other, q in zip(sizes.values(), found, strict=True):
            assert p / q == pytest.approx((one / other) ** alpha)


def test_weights_are_checked_against_the_corpus():
    assert source_probabilities({"a": 5, "b": 7}, None, {"b": 3.0, "a": 1.0}).tolist() == [0.25, 0.75]
    with pytest.raises(UserError, match=r"(?s)c: the corpus has no such source.*b: a source of the corpus without"):
        source_probabilities({"a": 5, "b": 7}, None, {"a": 1.0, "c": 1.0})


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 500))
def test_quotas_add_up_and_are_within_one_of_the_share(weights, draws):
    shares = np.array(weights, np.float64) / sum(weights)
    counts = quotas(shares, draws)
    assert counts.sum() == draws and (abs(counts - shares * draws) < 1).all()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_measured_shares_of_sources_are_the_probabilities(alpha):
    sizes = {"large": 4000, "middle": 500, "small": 40}
    shares = source_probabilities(sizes, alpha, None)
    batch, steps = 64, 50
    order = epoch_order(list(sizes.values()), quotas(shares, batch * steps), seed=3, epoch=0, window=10_000)
    counts = np.stack([np.bincount(part, minlength=3) for part in order.source.reshape(steps, batch)])
    assert abs(counts.sum(0) / counts.sum() - shares).max() < 1 / (batch * steps)
    # Every batch is a sample of this mixture: the mean squared distance from it is what chance gives (chi square, 2
    # degrees of freedom; its mean over 50 batches is 2 ± 0.28).
    chi_square = ((counts - batch * shares) ** 2 / (batch * shares)).sum(1).mean()
    assert 1.2 < chi_square < 2.8


@pytest.mark.parametrize("count", [7, 23, 60])
def test_no_pair_comes_again_before_all_others_of_its_source_came(count):
    size, epochs = 23, 9
    counts = np.array([count, 5])
    orders = [epoch_order([size, 11], counts, seed=1, epoch=epoch, window=1000) for epoch in range(epochs)]
    seen = np.concatenate([order.pair[order.source == 0] for order in orders])
    visits = np.concatenate([order.visit[order.source == 0] for order in orders])
    for number, begin in enumerate(range(0, len(seen) - size + 1, size)):
        assert sorted(seen[begin : begin + size]) == list(range(size))
        assert (visits[begin : begin + size] == number).all()


def test_a_source_that_is_tiny_beside_its_share_takes_no_time():
    order = epoch_order([2, 3000], np.array([60_000, 100]), seed=0, epoch=1, window=1000)  # each pair 30 000 times
    assert np.bincount(order.pair[order.source == 0]).tolist() == [30_000, 30_000]
    assert order.visit[order.source == 0].tolist() == np.repeat(np.arange(30_000, 60_000), 2).tolist()


def test_by_size_an_epoch_is_every_pair_once_in_an_order_of_its_own():
    first, again, second, other = (epoch_order([30, 10], np.array([30, 10]), seed, epoch, 1000)
                                   for seed, epoch in ((5, 0), (5, 0), (5, 1), (6, 0)))
    assert sorted(zip(first.source.tolist(), first.pair.tolist(), strict=True)) == [
        *((0, pair) for pair in range(30)), *((1, pair) for pair in range(10))]
    assert (first.visit == 0).all() and (second.visit == 1).all()
    assert (first.pair == again.pair).all() and (first.source == again.source).all()
    assert (first.pair != second.pair).any() and (first.pair != other.pair).any()


@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 20))
def test_an_order_in_blocks_is_a_permutation_that_reads_few_places_at_once(count, window, block):
    order = shuffled(count, window, np.random.default_rng(0), block)
    assert sorted(order.tolist()) == list(range(count))
    if count > window:
        for begin in range(0, count, window):
            blocks = {pair // block for pair in order[begin : begin + window].tolist()}
            # A window of whole blocks begins and ends inside one, and the corpus's last block may be short.
            assert len(blocks) <= window // block + 3


def test_blocks_are_mixed_so_that_neighbors_come_apart():
    order = shuffled(10_000, 2_000, np.random.default_rng(0), 100)
    assert (np.diff(order) == 1).mean() < 0.01


def test_a_batch_larger_than_the_corpus_is_refused():
    assert steps_per_epoch(100, 30) == 3
    with pytest.raises(UserError, match=r"29 training pairs, fewer than the batch of 30"):
        steps_per_epoch(29, 30)
