"""The figure of amplitudes: both quantiles of everyone, and what they differ from the teacher's by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from oss_ext.plot_amplitudes import plot_amplitudes
from oss_ext.schedule_calibration import Amplitudes


def known(t: tuple[float, ...], size: float, quantiles: tuple[float, float] = (0.05, 0.95)) -> Amplitudes:
    low, high = (tuple(sign * size * (1 + each) for each in t) for sign in (-1, 2))
    return Amplitudes(quantiles=quantiles, samples=2, t=t, low=low, high=high)


TEACHER = known((1.0, 0.75, 0.5, 0.25, 0.0), 1.0)
ONE, TWO = known((1.0, 0.4, 0.0), 1.5), known((0.9, 0.3, 0.0), 0.5)


def test_every_number_is_drawn(tmp_path: Path) -> None:
    figure = plot_amplitudes({"teacher": TEACHER, "one": ONE, "two": TWO}, tmp_path / "a.png")
    assert imread(tmp_path / "a.png").shape[:2] == (760, 1200)
    for side, name in enumerate(("low", "high")):
        above, below = figure.axes[side], figure.axes[2 + side]
        assert above.get_title() == ("5 % quantile of the states", "95 % quantile of the states")[side]
        drawn = {line.get_label(): line.get_xydata() for line in above.lines}
        assert list(drawn) == ["teacher", "one", "two"]
        for title, each in (("teacher", TEACHER), ("one", ONE), ("two", TWO)):
            np.testing.assert_allclose(drawn[title], list(zip(each.t, getattr(each, name), strict=True)))
        off = {line.get_label(): line.get_xydata() for line in below.lines if line.get_label() in ("one", "two")}
        for title, excess in (("one", 0.5), ("two", -0.5)):
            t = off[title][:, 0]
            np.testing.assert_allclose(off[title][:, 1], (-1, 2)[side] * excess * (1 + t), atol=1e-12)
        left, right = above.get_xlim()
        assert left > 1 > 0 > right
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["teacher", "one", "two"]


@pytest.mark.parametrize(
    ("amplitudes", "options", "error", "message"),
    [
        ({}, {}, ValueError, "amplitudes: got 0"),
        ({"a": TEACHER}, {}, ValueError, "amplitudes: got 1"),
        ({"a": TEACHER, "b": [1.0]}, {}, TypeError, "amplitudes: wanted"),
        ([TEACHER, ONE], {}, TypeError, "amplitudes: wanted"),
        ({"a": TEACHER, "b": known((1.0, 0.0), 1.0, (0.1, 0.9))}, {}, ValueError, "'b'.*got the quantiles"),
        ({"a": TWO, "b": ONE}, {}, ValueError, "'b'.*got the first flow time 1, wanted at most 0.9"),
        ({"a": TEACHER, "b": ONE}, {"path": "a.txt"}, ValueError, "path"),
    ],
)
def test_bad_input(amplitudes: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plot_amplitudes(amplitudes, **options)
