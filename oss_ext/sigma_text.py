"""Lists of noise levels as text: written as the tools read them, read as people paste them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from oss_ext.validate import whole_number

DECIMALS = 10
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_BETWEEN = re.compile(r"[\s,;]*")
_BRACKETS = re.compile(r"[\[(]([^\[\]()]*)[\])]")


def format_sigmas(sigmas: Sequence[float], *, decimals: int = DECIMALS) -> str:
    """ "0.9968, 0.5512, 0.0": fixed decimals, never an exponent, trailing zeros cut, one digit after the point kept.

    ComfyUI's ManualSigmas takes 1e-3 for the two numbers 1 and -3. `parse_sigmas` reads back round(sigma, decimals).
    Raises ValueError where that many decimals make neighbours equal, or a positive level 0.
    """
    decimals = whole_number("decimals", decimals, least=1, most=17)
    fixed = [f"{value:.{decimals}f}" for value in sigmas]
    for index, (text, value) in enumerate(zip(fixed, sigmas, strict=True)):
        if value > 0 and float(text) == 0:
            raise ValueError(f"decimals: got {decimals}, which makes {value:.6g} at place {index} zero, wanted more")
        if index and float(text) == float(fixed[index - 1]) and value != sigmas[index - 1]:
            raise ValueError(
                f"decimals: got {decimals}, which makes {sigmas[index - 1]:.17g} and {value:.17g} at places "
                f"{index - 1} and {index} the same, wanted more"
            )
    return ", ".join(re.sub(r"(\.\d+?)0+$", r"\1", text) for text in fixed)


def parse_sigmas(text: str) -> list[float]:
    """The numbers of a pasted list: commas, semicolons, blanks or lines between them, brackets and a "name =" or
    "torch.tensor(" around them allowed, exponents too. Raises ValueError that shows what is no number."""
    if not isinstance(text, str):
        raise TypeError(f"sigmas: got {type(text).__name__}, wanted text")
    inside = _BRACKETS.findall(text)
    if len(inside) > 1:
        raise ValueError(f"sigmas: got {len(inside)} lists in brackets, wanted one")
    body = (inside[0] if inside else text.rpartition("=")[2]).strip().strip(",;").strip()
    values: list[float] = []
    place = 0
    while place < len(body):
        found = _NUMBER.match(body, place)
        if found is None:
            raise ValueError(f"sigmas: got {body[place : place + 20]!r} in the list, wanted numbers with commas")
        values.append(float(found.group()))
        place = found.end()
        gap = _BETWEEN.match(body, place)
        assert gap is not None  # it matches nothing too
        if gap.end() == place and place < len(body):
            raise ValueError(f"sigmas: got {body[place : place + 20]!r} after {found.group()}, wanted a comma")
        place = gap.end()
    if not values:
        raise ValueError(f"sigmas: got {text!r}, wanted numbers with commas")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"sigmas: got {values}, wanted finite numbers")
    return values
