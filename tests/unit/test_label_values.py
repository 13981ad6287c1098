"""Label values in files ↔ internal labels: a bijection, whatever the integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data.labels import count_values, to_file_values, to_internal

values_lists = st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 300), min_size=1, max_size=8, unique=True)


@settings(max_examples=100, deadline=None)
@given(values_lists, st.integers(0, 2**31))
def test_there_and_back(values: list[int], seed: int) -> None:
    internal = np.random.default_rng(seed).integers(0, len(values), (2, 3, 4)).astype(np.uint8)
    stored = to_file_values(internal, values)
    assert stored.tolist() == np.array(values, object)[internal].tolist()
    back = to_internal(stored, values)
    np.testing.assert_array_equal(back, internal)
    assert back.dtype == np.uint8


@settings(max_examples=50, deadline=None)
@given(values_lists, st.integers(0, 2**31))
def test_counts_are_numpys(values: list[int], seed: int) -> None:
    stored = np.array(values)[np.random.default_rng(seed).integers(0, len(values), (2, 3, 4))]
    found, times = np.unique(stored, return_counts=True)
    assert count_values(stored) == dict(zip(found.tolist(), times.tolist(), strict=True))


@pytest.mark.parametrize("values", [(0, 1), (0, 5, -3), (0, 10**6, 7)])
@pytest.mark.parametrize("unknown", [2, -7, 10**5, 2 * 10**6])
def test_unknown_values_are_refused(values: tuple[int, ...], unknown: int) -> None:
    with pytest.raises(ValueError, match=str(unknown)):
        to_internal(np.array([[[values[0], unknown]]]), values)


def test_more_than_256_labels_take_int16() -> None:
    values = tuple(range(0, 600, 2))
    internal = to_internal(np.array(values).reshape(1, 1, -1), values)
    assert internal.dtype == np.int16 and internal.ravel().tolist() == list(range(300))


def test_internal_labels_without_value_are_refused() -> None:
    for wrong in (3, -1):
        with pytest.raises(IndexError):
            to_file_values(np.array([[[wrong]]]), (0, 1, 2))
