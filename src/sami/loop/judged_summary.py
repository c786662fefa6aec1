"""What judges add to a run's summary: entries of baselines, the verdict in a sentence, lengths."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from sami.evaluation import information
from sami.evaluation.information import PolicyScores
from sami.evaluation.pairs import Policy
from sami.loop.summary import verifier_rate
from sami.principles import Principle
from sami.recipe import Recipe
from sami.text.words import word_count


def baseline(policy: Policy, principles: Sequence[Principle], recipe: Recipe) -> dict[str, Any]:
    """The entry of a baseline that is no iteration of the run: what its text alone tells."""
    sampling = {"samples": recipe.evaluation.bootstrap_samples, "seed": recipe.evaluation.seed}
    known = {p.id: p for p in principles}
    verdicts = [
        {"query": item.query, "learned": not known[name].held_out, "principle": name, "passed": passed}
        for item, response in policy.responses.items()
        for name, positive in item.principles or ()
        if (passed := known[name].follows(response.text, positive)) is not None
    ]
    rates = {
        scope: asdict(verifier_rate([v for v in verdicts if v["learned"] == learned], sampling))
        for scope, learned in (("learned", True), ("held_out", False))
    }
    by_principle = {p.id: verifier_rate([v for v in verdicts if v["principle"] == p.id], sampling) for p in principles}
    nothing = information.summarize(PolicyScores([], []), **sampling).as_json()
    words = [word_count(response.text) for response in policy.responses.values()]
    return {
        "name": policy.name,
        "iteration": None,
        "information": nothing,
        "information_held_out": nothing,
        "verifier": rates,
        "principles": {
            p.id: {"learned": not p.held_out, "bound": None, "verifier_rate": by_principle[p.id].value}
            for p in principles
        },
        "health": {"responses": len(words), "words": sum(words) / len(words), "failures": []},
    }


def verdict(comparison: dict[str, Any], win_rates: Sequence[dict[str, Any]]) -> str:
    """In one sentence, whether a policy is better than base: by the frozen base model, health and the judges.

    A judge that was forced though it is not above chance is shown and decides nothing.
    """
    policy, against = comparison["policy"], comparison["against"]
    judged = _said_of(comparison, win_rates)
    evidence = comparison["reason"].partition(": ")[2].rstrip(".")
    won = all(above for above, _ in judged)
    if comparison["better"] and won:
        return (
            f"{policy} is better than {against}{', '.join([''] * bool(judged) + [t for _, t in judged])}: {evidence}."
        )
    losing = [] if won or not comparison["better"] else ["a judge's interval reaches 50 %"]
    figures = [text.removeprefix("by ") for _, text in judged]
    return f"{policy} is not called better than {against}: {'; '.join([*losing, evidence, *figures])}."


def called_better(comparison: dict[str, Any], win_rates: Sequence[dict[str, Any]]) -> bool:
    """Whether `verdict` says that the policy is better."""
    return bool(comparison["better"]) and all(above for above, _ in _said_of(comparison, win_rates))


def _said_of(comparison: dict[str, Any], win_rates: Sequence[dict[str, Any]]) -> list[tuple[bool, str]]:
    """What each judge says of a comparison, on learned principles where verdicts tell them apart."""
    pair = comparison["policy"], comparison["against"]
    cells = [cell for cell in win_rates if (cell["candidate"], cell["baseline"]) == pair]
    learned = [cell for cell in cells if cell["scope"] == "learned"]
    return [_judged(cell) for cell in learned or [cell for cell in cells if cell["scope"] == "all"]]


def _judged(cell: dict[str, Any]) -> tuple[bool, str]:
    """Whether a win rate does not speak against the candidate, and the figure in words."""
    kind = "length_controlled" if cell["length_controlled"]["low"] is not None else "raw"
    rate, accuracy = cell[kind], cell["judge_accuracy"]
    if accuracy is None:
        worth = "whose checks define the answer" if cell["judge"] == "verifier" else "not calibrated"
    elif accuracy["accuracy"] is None or accuracy["low"] is None:  # no pair with a known answer was scored, or one
        worth = "not above chance, for want of pairs with a known answer"
    else:
        worth = f"judge accuracy {accuracy['accuracy']:.0f} % [{accuracy['low']:.0f}, {accuracy['high']:.0f}]"
        worth += "" if accuracy["above_chance"] else ", not above chance"
    if rate["low"] is None:  # a single query has no interval
        return False, f"by no figure of {cell['judge']} with an interval ({worth})"
    gain, low, high = (rate[name] - 50 for name in ("rate", "low", "high"))
    return low > 0 or (accuracy is not None and not accuracy["above_chance"]), (
        f"by {gain:+.1f} points of {kind.replace('_', '-')} win rate, interval [{low:+.1f}, {high:+.1f}], "
        f"n {cell['queries']} queries ({cell['judge']}, {worth})"
    )


def length_table(lengths: Sequence[dict[str, Any]]) -> Table:
    """Mean lengths of policies, and words against the first of them."""
    shown = Table(title="Length of responses", title_justify="left")
    for column in ("policy", "responses", "words", "of the first", "tokens", "characters"):
        shown.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for row in lengths:
        ratio = row["words"] / lengths[0]["words"] if lengths[0]["words"] else 1.0
        shown.add_row(
            row["policy"],
            str(row["responses"]),
            f"{row['words']:.1f}",
            f"{ratio:.2f}",
            f"{row['tokens']:.1f}",
            f"{row['chars']:.0f}",
        )
    return shown
