"""Figures in words, the same everywhere on a page."""

from collections.abc import Mapping
from typing import Any

NONE = "–"


def number(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:+.{digits}f}".replace("-", "−")


def interval(low: float | None, high: float | None, digits: int = 3, *, is_signed: bool = False) -> str:
    """ "[0.155, 0.186]"; empty where there is none."""
    if low is None or high is None:
        return ""
    show = signed if is_signed else number
    return f"[{show(low, digits)}, {show(high, digits)}]"


def difference(estimate: Mapping[str, Any], digits: int = 3) -> str:
    """ "+0.079 [+0.064, +0.094], n 120"."""
    if estimate["value"] is None:
        return NONE
    limits = interval(estimate["low"], estimate["high"], digits, is_signed=True)
    return f"{signed(estimate['value'], digits)} {limits}, n {estimate['n']}"


def rate(value: Mapping[str, Any], digits: int = 1) -> str:
    """A win rate in percent with its interval."""
    return f"{number(value['rate'], digits)} {interval(value['low'], value['high'], digits)}".strip()


def reading(estimate: Mapping[str, Any]) -> str:
    """What an interval of a difference allows to say."""
    if estimate["value"] is None:
        return "not measured"
    if estimate["low"] is None:
        return "too few queries for an interval"
    if estimate["low"] > 0:
        return "more than base"
    if estimate["high"] < 0:
        return "less than base"
    return "no difference shown: the interval holds 0"


def seconds(value: float) -> str:
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{value:.1f} s"
