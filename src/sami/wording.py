"""Numbers, intervals and estimates as text, the same on the terminal, in model cards and in reports.

A missing figure is an en dash. Minus signs are ASCII hyphens, so that a figure can be searched for and pasted.
"""

from typing import Protocol

NONE = "–"


class Measured(Protocol):
    """A figure with its 95 % interval and the number of values behind it, such as a bootstrap `Estimate`."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def n(self) -> int: ...


def number(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:+.{digits}f}"


def percent(fraction: float | None, digits: int = 0) -> str:
    """0.857 as "86 %"."""
    return NONE if fraction is None else f"{100 * fraction:.{digits}f} %"


def interval(low: float | None, high: float | None, digits: int = 3, *, is_signed: bool = False) -> str:
    """ "[0.155, 0.186]"; empty where there is no interval."""
    if low is None or high is None:
        return ""
    show = signed if is_signed else number
    return f"[{show(low, digits)}, {show(high, digits)}]"


def with_interval(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """ "0.171 [0.155, 0.186]"."""
    return NONE if value is None else f"{number(value, digits)} {interval(low, high, digits)}".strip()


def estimate(figure: Measured, digits: int = 3) -> str:
    """ "0.171 [0.155, 0.186]"."""
    return with_interval(figure.value, figure.low, figure.high, digits)


def share(figure: Measured, digits: int = 0, unit: str = " %") -> str:
    """A fraction in percent: "86 % [82, 89]"."""
    if figure.value is None:
        return NONE
    low, high = (None if side is None else 100 * side for side in (figure.low, figure.high))
    return f"{100 * figure.value:.{digits}f}{unit} {interval(low, high, digits)}".strip()


def difference(figure: Measured, digits: int = 3, unit: str = "") -> str:
    """ "+0.079 nats [+0.064, +0.094], n 120"."""
    if figure.value is None:
        return NONE
    limits = interval(figure.low, figure.high, digits, is_signed=True)
    return " ".join(filter(None, (signed(figure.value, digits), unit, limits))) + f", n {figure.n}"


def reading(figure: Measured) -> str:
    """What the interval of a difference from base shows."""
    if figure.value is None:
        return "not measured"
    if figure.low is None or figure.high is None:
        return "too few queries for an interval"
    if figure.low > 0:
        return "more than base"
    if figure.high < 0:
        return "less than base"
    return "no difference shown: the interval contains 0"


def seconds(value: float) -> str:
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{value:.1f} s"
