"""Win rates in a terminal: tables of the figures of `sami.evaluation.win_rate`, and when not to trust them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from sami.errors import one_line
from sami.evaluation.win_rate import Rate
from sami.wording import NONE, number, with_interval

# Near 50 %, a rate of fewer queries has an interval of about 28 points or more.
FEW_QUERIES = 50
MOST_UNSCORED = 5.0  # percent


def tables(rates: Sequence[dict[str, Any]]) -> list[Table]:
    """Win rates, the judgements behind them, and win rates by principle if verdicts name principles."""
    shown = [_rates(rates), _judges(rates)]
    if any(cell["per_principle"] for cell in rates):
        shown.append(_principles(rates))
    return shown


def warnings(rates: Sequence[dict[str, Any]]) -> list[str]:
    """What makes figures unreliable: a sentence for each comparison and cause, or none."""
    comparisons: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in rates:
        policies, judge, _ = _who(cell)
        comparisons[f"{policies} by {judge}"].append(cell)
    said = []
    for who, cells in comparisons.items():
        if few := [cell for cell in cells if min(cell["strata_n"].values()) < FEW_QUERIES]:
            said.append(
                f"{who}: fewer than {FEW_QUERIES} queries in a stratum of length (longer/not longer: "
                + ", ".join(f"{_scope(cell)} {_strata(cell)}" for cell in few)
                + "). Half of each stratified rate rests on its smaller stratum, and intervals are too narrow there."
            )
        if one_sided := [_scope(cell) for cell in cells if min(cell["strata_n"].values()) == 0]:
            said.append(
                f"{who}: all responses are on one side of the baseline's length ({', '.join(one_sided)}), so there is "
                "no stratified rate, and the length-controlled rate is an extrapolation."
            )
        if undefined := [_scope(cell) for cell in cells if cell["length_controlled"]["rate"] is None]:
            said.append(
                f"{who}: no length-controlled rate, since all pairs have the same difference in length "
                f"({', '.join(undefined)})."
            )
        for cell in cells:
            if (share := 100 * cell["unscored"] / cell["judgements"]) > MOST_UNSCORED:
                said.append(
                    f"{who}: {share:.1f} % of the judgements ({_scope(cell)}) have no score (limit "
                    f"{MOST_UNSCORED:g} %). If the judge fails more often on one policy, the rates are biased."
                )
    return said


def agreement_sentence(pair: dict[str, Any]) -> str:
    """One entry of `sami.evaluation.win_rate.agreement` in a sentence."""
    a, b = map(one_line, pair["judges"])
    kappa = "undefined" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
    return f"{a} and {b} agree on {pair['agreement']:.1f} % of {pair['judgements']} judgements (Cohen's kappa {kappa})."


def _rates(rates: Sequence[dict[str, Any]]) -> Table:
    table = _table("Win rates in percent, a tie counts half; 95 % intervals over queries")
    for name in ("raw", "stratified", "length-controlled", "queries", "longer/not"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in rates:
        table.add_row(
            *_who(cell),
            *(_interval(cell[name]) for name in ("raw", "stratified", "length_controlled")),
            str(cell["queries"]),
            _strata(cell),
        )
    return table


def _judges(rates: Sequence[dict[str, Any]]) -> Table:
    table = _table("Judgements behind them")
    for name in ("judgements", "unscored", "ties", "both orders agree", "first shown wins", "mean tokens"):
        table.add_column(name, justify="right")
    for cell in rates:
        table.add_row(
            *_who(cell),
            *(str(cell[name]) for name in ("judgements", "unscored", "ties")),
            *(_percent(cell[name]) for name in ("consistency", "first_position_rate")),
            f"{cell['candidate_length']['tokens']:.1f} vs {cell['baseline_length']['tokens']:.1f}",
        )
    return table


def _principles(rates: Sequence[dict[str, Any]]) -> Table:
    table = _table("Win rates by principle", scope=False)
    table.add_column("principle")
    for name in ("raw", "queries"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in rates:
        if cell["scope"] == "all":
            for principle, rate in (cell["per_principle"] or {}).items():
                table.add_row(*_who(cell)[:2], principle, _interval(rate), str(rate["n"]))
    return table


def _table(title: str, *, scope: bool = True) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in ("policies", "judge", *(["scope"] if scope else [])):
        table.add_column(name, overflow="fold")
    return table


def _who(cell: dict[str, Any]) -> tuple[str, str, str]:
    """(policies, judge, scope) on one line each, whatever the names contain."""
    candidate, baseline, judge = (one_line(cell[name]) for name in ("candidate", "baseline", "judge"))
    return f"{candidate} vs {baseline}", judge, _scope(cell)


def _scope(cell: dict[str, Any]) -> str:
    return cell["scope"].replace("_", " ")


def _strata(cell: dict[str, Any]) -> str:
    return "/".join(str(n) for n in cell["strata_n"].values())


def _interval(rate: Rate) -> str:
    return with_interval(rate["rate"], rate["low"], rate["high"], 1)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{number(value, 1)} %"
