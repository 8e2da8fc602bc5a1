from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from oss_ext.median import elementwise_median


def test_odd_counts_take_the_middle_one():
    """The published code averages two neighbours here and gets 15."""
    assert elementwise_median(torch.tensor([[0, 10, 100], [0, 20, 100], [0, 90, 100]])).tolist() == [0, 20, 100]


def test_even_counts_take_the_mean_of_the_middle_two_a_half_goes_to_the_noisier_node():
    paths = torch.tensor([[0, 1, 9], [0, 4, 9], [0, 7, 9], [0, 8, 9]])
    assert elementwise_median(paths).tolist() == [0, 5, 9]
    assert elementwise_median(paths[[0, 2]]).tolist() == [0, 4, 9]


def test_one_path_is_its_own_median():
    assert elementwise_median(torch.tensor([[0, 3, 4, 9]])).tolist() == [0, 3, 4, 9]


@given(st.data())
def test_medians_are_strictly_ascending_and_elementwise(data):
    nodes, steps = data.draw(st.integers(4, 40)), data.draw(st.integers(1, 4))
    inner = st.lists(st.integers(0, nodes - 1), min_size=steps, max_size=steps, unique=True).map(sorted)
    paths = torch.tensor([[*data.draw(inner), nodes] for _ in range(data.draw(st.integers(1, 7)))])
    median = elementwise_median(paths)
    assert bool((median.diff() > 0).all()) and median[-1] == nodes
    exact = torch.quantile(paths.double(), 0.5, dim=0, interpolation="midpoint")
    assert torch.equal(median, exact.floor().long())
