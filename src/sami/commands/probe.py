"""`sami probe`: how far the base model follows each principle, before any training.

    links = probe(load_recipe("quickstart"), queries=24)

The method only amplifies a link that exists. The base model answers training queries under each principle and under
its antithesis, and then scores the answers: can it tell which of the two an answer was written under?
Shapes: B contrasts, 2 constitutions, 2 responses.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from rich.table import Table

from sami import objective, wording
from sami.console import bar, say, show, show_json
from sami.contrast_plan import Planned
from sami.contrasts import Contrast, row_tokens
from sami.errors import InputError
from sami.evaluation.bootstrap import Estimate, mean_by_query
from sami.evaluation.information import ContrastScores, score_contrasts
from sami.filters import surviving
from sami.generation.respond import respond
from sami.generation.transformers_engine import TransformersEngine
from sami.models import loading
from sami.prepared import Prepared, prepare, require_room
from sami.principle_writing import files as principle_files
from sami.principles import Constitution, Principle
from sami.queries import Query
from sami.recipe import Recipe
from sami.scoring.packing_check import check_packing

Verdict = Literal["worth training", "weak", "not followed"]
# Two sentences that ask for the same. Any change of a prompt changes its answer a little, and a greedy answer is more
# likely under its own prompt. So this link, rather than chance, is what a principle that is not followed reaches.
CONTROL = Principle(id="control.of.the.probe", definition="Answer the question.", antithesis="Reply to the question.")
RULE = (
    "worth training: the intervals of column accuracy and of both bounds lie above chance and above the control, and "
    "the recipe's filters keep enough contrasts; weak: only some of this holds; not followed: neither the interval of "
    "accuracy nor that of the bound lies above"
)
FEW = 12  # queries; resampling fewer gives intervals that are too narrow
ROUNDING = 1e-6  # smallest distance from chance that counts
# Inverse temperatures to try: from no confidence at all to that of a sum over hundreds of tokens.
_INVERSE_TEMPERATURES = torch.logspace(-2, 3, 501, dtype=torch.float64)


@dataclass(frozen=True)
class Link:
    """How well the base model distinguishes its own answers under a principle and under its antithesis."""

    principle: Principle
    accuracy: Estimate
    """Column accuracy: share of answers that are more likely under their own constitution; 0.5 is chance."""
    bound: Estimate
    """Column bound in nats, at most log 2, with one temperature for all principles; 0 is chance."""
    unleaked_bound: Estimate
    """The same without the words of the two sentences, with a temperature of its own."""
    kept: float
    """Share of the contrasts that pass the recipe's filters."""
    enough: bool
    """Whether that is at least `filters.min_survivors`."""
    example: Contrast

    def verdict(self, control: "Link") -> Verdict:
        """The verdict by `RULE`, against the link of two sentences that ask for the same."""
        followed = [_above(self.accuracy, control.accuracy, 0.5), _above(self.bound, control.bound, 0.0)]
        if all(followed) and _above(self.unleaked_bound, control.unleaked_bound, 0.0) and self.enough:
            return "worth training"
        return "weak" if any(followed) else "not followed"


@dataclass(frozen=True)
class Probe:
    """The links of the principles of a recipe, strongest first."""

    links: list[Link]
    control: Link
    temperature: float
    unleaked_temperature: float
    queries: int
    fitted_on: int

    def as_json(self) -> dict[str, Any]:
        return {
            "queries": self.queries,
            "temperature_queries": self.fitted_on,
            "temperature": self.temperature,
            "unleaked_temperature": self.unleaked_temperature,
            "rule": RULE,
            "control": _figures(self.control),
            "principles": [
                {
                    "id": link.principle.id,
                    "held_out": link.principle.held_out,
                    "verdict": link.verdict(self.control),
                    **_figures(link),
                    "example": {
                        "query": link.example.query,
                        "under_definition": link.example.responses[0],
                        "under_antithesis": link.example.responses[1],
                    },
                }
                for link in self.links
            ],
        }


def probe(recipe: Recipe, queries: int) -> Probe:
    """Measure every principle of a recipe on the base model, without training or writing anything.

    Args:
        queries: training queries to measure each principle on; half as many others fit the temperatures.

    Raises:
        InputError: whatever `sami run` would refuse, too few training queries, or principles yet to be written.
    """
    principle_files.require_written(recipe.principles)
    prepared = prepare(recipe)
    recipe = prepared.recipe
    measured, fitting = _draw(prepared, queries)
    principles = [*prepared.principles, CONTROL]
    planned = [_planned(query, principle) for query in [*fitting, *measured] for principle in principles]
    require_room(recipe.model, prepared.prompts, planned, recipe.generation.max_new_tokens)
    base = loading.load_model(recipe.model, prepared.dtype)
    say(
        f"{len(prepared.principles)} principles and a control, {queries} training queries to measure each, "
        f"{len(fitting)} others for the temperature: {2 * len(planned)} answers of the base model"
    )
    engine = TransformersEngine(base, prepared.tokenizer, recipe.generation.batch_size)
    contrasts = respond(engine, planned, prepared.prompts, recipe, "answering", shuffle=False)
    with bar("scoring", len(contrasts), "contrasts") as update:
        scores = score_contrasts(
            base,
            tokenizer=prepared.tokenizer,
            contrasts=contrasts,
            held_out=set(),
            batch_size=2 * recipe.training.micro_batch_size,
            share_prefix=_shares_rows(prepared, contrasts),
            on_contrasts=update,
        )
    return read_links(prepared, contrasts, scores, fitting)


def read_links(
    prepared: Prepared, contrasts: Sequence[Contrast], scores: Sequence[ContrastScores], fitting: Sequence[Query]
) -> Probe:
    """Links from scored contrasts: temperatures from those of the fitting queries, figures from the others."""
    recipe = prepared.recipe
    texts = {query.text for query in fitting}
    own = [s for s in scores if s.query in texts and s.principles != [CONTROL.id]]
    beta = _inverse_temperature([s.matrix for s in own])
    unleaked_beta = _inverse_temperature([s.masked for s in own if s.masked is not None])

    def estimate(values: list[float], queries: list[str]) -> Estimate:
        samples, seed = recipe.evaluation.bootstrap_samples, recipe.evaluation.seed
        return mean_by_query(values, queries, samples=samples, seed=seed)

    links = []
    for principle in [*prepared.principles, CONTROL]:
        chosen = [(c, s) for c, s in zip(contrasts, scores, strict=True) if s.principles == [principle.id]]
        chosen = [(c, s) for c, s in chosen if s.query not in texts]
        plain, unleaked = [s for _, s in chosen], [s for _, s in chosen if s.masked is not None]
        kept = surviving([c for c, _ in chosen], recipe.filters, prepared.prompts.stop, prepared.prompts.control)
        links.append(
            Link(
                principle=principle,
                accuracy=estimate(_accuracies([s.matrix for s in plain]), [s.query for s in plain]),
                bound=estimate(_bounds([s.matrix for s in plain], beta), [s.query for s in plain]),
                unleaked_bound=estimate(
                    _bounds([s.masked for s in unleaked], unleaked_beta), [s.query for s in unleaked]
                ),
                kept=kept,
                enough=kept >= recipe.filters.min_survivors,
                example=chosen[0][0],
            )
        )
    control = links.pop()
    order: dict[Verdict, int] = {"worth training": 0, "weak": 1, "not followed": 2}
    links.sort(key=lambda link: (order[link.verdict(control)], -(link.bound.value or 0.0)))
    return Probe(links, control, 1 / beta, 1 / unleaked_beta, len({s.query for s in scores} - texts), len(texts))


def show_links(found: Probe, *, as_json: bool) -> None:
    """Print the ranking of the principles and what it means."""
    if as_json:
        show_json(found.as_json())
        return
    show(table(found))
    for sentence in sentences(found):
        show(sentence)


def table(found: Probe) -> Table:
    """The ranking, with one row for each principle."""
    shown = empty_table(found.queries, "principle")
    for link in [*found.links, found.control]:
        shown.add_row(name_of(link), *cells(link, found.control))
    return shown


def empty_table(queries: int, *leading: str) -> Table:
    """A table of links without rows, whose first columns are the leading ones."""
    shown = Table(
        title=f"Initial links on the base model, {queries} training queries each; 95 % intervals over queries",
        title_justify="left",
    )
    for name in leading:
        shown.add_column(name, overflow="fold")
    for name in ("column accuracy", "bound, nats", "without its words", "kept"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    return shown


def name_of(link: Link) -> str:
    if link.principle is CONTROL:
        return "control"
    return link.principle.id + " (held out)" * link.principle.held_out


def cells(link: Link, control: Link) -> list[str]:
    """The figures of a link and its verdict, as the columns of `empty_table`."""
    return [
        wording.estimate(link.accuracy, 2),
        wording.estimate(link.bound, 3),
        wording.estimate(link.unleaked_bound, 3),
        f"{link.kept:.0%}",
        wording.NONE if link is control else link.verdict(control),
    ]


def sentences(found: Probe) -> list[str]:
    """The ranking in words, and the rule behind it."""
    by_verdict: dict[Verdict, list[str]] = {"worth training": [], "weak": [], "not followed": []}
    for link in found.links:
        by_verdict[link.verdict(found.control)].append(link.principle.id)
    said = [f"{verdict}: {', '.join(names)}" for verdict, names in by_verdict.items() if names]
    return [
        *said,
        *cautions(found),
        f"Rule: {RULE}. Temperature: {found.temperature:.3g}, fitted on {found.fitted_on} other queries.",
    ]


def cautions(found: Probe) -> list[str]:
    """What makes the figures doubtful."""
    if found.queries >= FEW:
        return []
    return [f"{found.queries} queries are few: intervals are too narrow, and verdicts may be chance. Use 24."]


def _draw(prepared: Prepared, queries: int) -> tuple[list[Query], list[Query]]:
    """Training queries to measure on, and others to fit the temperatures with."""
    training = [query for half in prepared.splits.train for query in half]
    others = math.ceil(queries / 2)
    if queries + others > len(training):
        raise InputError(
            f"Each principle would be measured on {queries} training queries and the temperature fitted on {others} "
            f"others, but the recipe has {len(training)}. Lower --queries, or raise queries.train."
        )
    drawn = random.Random(f"queries of the probe, seed {prepared.recipe.sampling.seed}").sample(
        training, queries + others
    )
    return drawn[:queries], drawn[queries:]


def _planned(query: Query, principle: Principle) -> Planned:
    pair = [Constitution(((principle, positive),)) for positive in (True, False)]
    return Planned(f"{query.id}-{principle.id}", query.asked, pair)


def _shares_rows(prepared: Prepared, contrasts: Sequence[Contrast]) -> bool:
    if not prepared.recipe.training.share_prefix:
        return False
    longest = max(contrasts, key=row_tokens)
    return check_packing(
        loading.load_model(prepared.recipe.model, torch.float32), longest, prepared.tokenizer.pad_token_id
    ).shared


def _inverse_temperature(matrices: Sequence[Any]) -> float:
    """The inverse temperature with the highest mean column bound, from a grid; the bound is concave in it."""
    if not matrices:
        return 1.0
    logprobs_B22 = torch.tensor(matrices, dtype=torch.float64)
    means = torch.stack([objective.information_bound(beta * logprobs_B22).mean() for beta in _INVERSE_TEMPERATURES])
    return float(_INVERSE_TEMPERATURES[means.argmax()])


def _bounds(matrices: Sequence[Any], beta: float) -> list[float]:
    if not matrices:
        return []
    bounds: list[float] = objective.information_bound(beta * torch.tensor(matrices, dtype=torch.float64)).tolist()
    return bounds


def _accuracies(matrices: Sequence[Any]) -> list[float]:
    accuracies: list[float] = objective.column_accuracy(torch.tensor(matrices, dtype=torch.float64)).tolist()
    return accuracies


def _figures(link: Link) -> dict[str, Any]:
    return {
        "column_accuracy": asdict(link.accuracy),
        "bound": asdict(link.bound),
        "unleaked_bound": asdict(link.unleaked_bound),
        "kept": link.kept,
    }


def _above(estimate: Estimate, control: Estimate, chance: float) -> bool:
    """Whether an interval lies above chance and above the control."""
    floor = chance if control.value is None else max(chance, control.value)
    return estimate.low is not None and estimate.low > floor + ROUNDING
