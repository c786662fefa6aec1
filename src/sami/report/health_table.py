"""The table of health figures by policy, beside the limits of the recipe."""

from collections.abc import Sequence

from sami.report.run_files import RunFiles
from sami.wording import NONE, number

HEALTH_FIGURES: Sequence[tuple[str, str, str, int]] = (
    # key, label, key of its limit in the recipe, digits
    ("words", "words in an answer", "", 1),
    ("loops", "repeat themselves, %", "loops", 1),
    ("leakage", "copy from the constitution, %", "leakage", 1),
    ("unfinished", "cut off, %", "unfinished", 1),
    ("template_leftovers", "contain template markers, %", "template_leftovers", 1),
    ("distinct_2", "distinct word pairs", "distinct_2_ratio", 3),
    ("base_logprob", "log-prob under base, nats per token", "base_logprob_drop", 2),
    ("relevance", "relevance to the query, nats per token", "relevance_ratio", 2),
    ("forgetting", "forgetting, KL in nats per token", "", 3),
    ("opening_share", "share of the most common opening, %", "", 1),
)


def health_table(run: RunFiles) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row for each figure, one column for each policy, and the recipe's limit."""
    measured = [one for one in run.policies if one.iteration is not None]
    rows = [
        [label, *(number(getattr(one.health, key), digits) for one in measured), _limit(run, limit)]
        for key, label, limit, digits in HEALTH_FIGURES
    ]
    return ["", *(one.name for one in measured), "limit"], rows


def _limit(run: RunFiles, key: str) -> str:
    if not key or run.settings is None:
        return NONE
    limit: float = getattr(run.settings.health, key)
    if key.endswith("_ratio"):
        return f"at least {limit:g} × base"
    return f"drop of at most {limit:g}" if key.endswith("_drop") else f"base + {limit:g}"
