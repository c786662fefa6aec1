"""A picture of the page with everything that is shown around it."""

from dataclasses import dataclass, field

from markupsafe import Markup

from sami.report.plots.svg import MUTED, series


@dataclass(frozen=True)
class Picture:
    key: str
    """Unique on the page."""
    title: str
    svg: Markup
    caption: str
    source: str
    """Files and keys of the run that the figures are read from."""
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    """The numbers of the picture as a table."""


def policy_color(number: int) -> str:
    """Base is muted; every policy after it has a color."""
    return MUTED if number == 0 else series(number + 1)


def short_name(policy: str) -> str:
    return policy.replace("iteration-", "iter. ")


def scope_name(scope: str) -> str:
    return scope.replace("_", " ")
