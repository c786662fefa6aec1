"""Which contrasts are worth training on: the recipe's filters, with a count of what each one dropped.

kept, dropped = filter_contrasts(contrasts, recipe.filters, stop)
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from sami.contrasts import Contrast
from sami.errors import InputError
from sami.prompts.control import control_inside
from sami.recipe import Filters
from sami.text.degeneration import repeated_loop, template_leftover
from sami.text.leaks import leakage


def filter_contrasts(
    contrasts: Sequence[Contrast],
    filters: Filters,
    stop: Sequence[str] = (),
    unfit: Mapping[str, Collection[str]] | None = None,
    control: Mapping[int, str] | None = None,
) -> tuple[list[Contrast], dict[str, int]]:
    """Keep the contrasts that pass every filter, and count the others by the first filter that took them.

    Args:
        unfit: ids of contrasts that are dropped in any case, by reason.
        control: the tokenizer's control tokens, which are leftovers inside a response.

    Raises:
        InputError: a smaller share than `filters.min_survivors` is left.
    """
    checks: dict[str, Callable[[Contrast], bool]] = {
        reason: lambda c, ids=ids: c.id in ids  # type: ignore[misc]
        for reason, ids in (unfit or {}).items()
    }
    if any("unsplit" in contrast.finish_reasons for contrast in contrasts):
        checks["unsplit"] = lambda c: "unsplit" in c.finish_reasons
    checks |= _checks(filters, stop, control or {})
    kept: list[Contrast] = []
    dropped: Counter[str] = Counter({name: 0 for name in checks})
    for contrast in contrasts:
        reason = next((name for name, takes in checks.items() if takes(contrast)), None)
        if reason is None:
            kept.append(contrast)
        else:
            dropped[reason] += 1
    if not kept or len(kept) < filters.min_survivors * len(contrasts):
        taken = ", ".join(f"{name} {count}" for name, count in dropped.most_common() if count)
        worst = dropped.most_common(1)[0][0] if taken else ""
        example = next((c for c in contrasts if worst and checks[worst](c)), None)
        raise InputError(
            f"Only {len(kept)} of {len(contrasts)} contrasts passed the filters ({taken or 'none generated'}); "
            f"filters.min_survivors asks for {filters.min_survivors:.0%}. {_advice(worst)}"
            + (f" An example of {worst}: {[r[:160] for r in example.responses]}." if example else "")
        )
    return kept, dict(dropped)


def _advice(worst: str) -> str:
    """What may let more contrasts pass, by the reason that took most of them."""
    match worst:
        case "unsplit":
            return "Word generation.chain_of_thought.instruction more plainly, or raise generation.max_new_tokens."
        case "held_out_query" | "without_prefix":
            return "Give other generation.first_contrasts, or another split of the queries or prompt.response_prefix."
        case "too_long":
            return "Lower queries.max_chars or generation.max_new_tokens, or take a model with a longer context."
        case _:
            return (
                "Raise generation.max_new_tokens, choose other principles, or turn off the filter that took most, in a "
                "new run."
            )


def surviving(
    contrasts: Sequence[Contrast],
    filters: Filters,
    stop: Sequence[str] = (),
    control: Mapping[int, str] | None = None,
) -> float:
    """The share of contrasts that pass every filter, whatever share is asked for."""
    checks = _checks(filters, stop, control or {})
    checks["unsplit"] = lambda c: "unsplit" in c.finish_reasons
    return sum(not any(takes(contrast) for takes in checks.values()) for contrast in contrasts) / len(contrasts)


def _checks(filters: Filters, stop: Sequence[str], control: Mapping[int, str]) -> dict[str, Callable[[Contrast], bool]]:
    """Whether a filter takes a contrast, by the filter's name."""
    leftovers = [s.strip() if len(s.strip()) > 1 else s for s in stop if s.strip()]
    unwanted = [term.casefold() for term in filters.unwanted]
    checks: dict[str, Callable[[Contrast], bool]] = {}
    if filters.empty:
        checks["empty"] = lambda c: any(not r.strip() for r in c.responses)
    if filters.identical:
        checks["identical"] = lambda c: len({r.strip() for r in c.responses}) < len(c.responses)
    if filters.unfinished:
        checks["unfinished"] = lambda c: "length" in c.finish_reasons
    if filters.stop_leftovers:
        checks["stop_leftovers"] = lambda c: any(
            template_leftover(r) is not None or any(s in r for s in leftovers) or control_inside(ids, reason, control)
            for r, ids, reason in zip(c.responses, c.response_ids, c.finish_reasons, strict=True)
        )
    if unwanted:
        checks["unwanted"] = lambda c: any(term in r.casefold() for r in c.responses for term in unwanted)
    if filters.loops:
        checks["loops"] = lambda c: any(repeated_loop(r) is not None for r in c.responses)
    if filters.leaks:
        checks["leaks"] = lambda c: any(leakage(r, c.constitutions, c.query) is not None for r in c.responses)
    return checks
