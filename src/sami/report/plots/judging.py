"""The picture of win rates."""

from sami.loop.results import WinRate
from sami.report.plots.panel import Box, Panel, label_width, limits, span
from sami.report.plots.picture import Picture, scope_name, short_name
from sami.report.plots.svg import LINE, MUTED, WIDTH, Key, Svg, fitted, series
from sami.report.run_files import RunFiles
from sami.wording import NONE, estimate

_ROW = 18.0


def win_rates(run: RunFiles) -> Picture | None:
    """Raw and length-controlled win rates with their intervals, grouped by judge."""
    cells = run.summary.win_rates
    if not cells:
        return None
    shown = [one for one in cells if one.scope != "all"] or cells
    rows: list[WinRate | str] = []  # a judge's name stands above its rows
    for judge in dict.fromkeys(one.judge for one in shown):
        rows += [judge, *(one for one in shown if one.judge == judge)]
    svg = Svg("Win rates with intervals")
    top = svg.legend([Key("length-controlled", series(0)), Key("raw", MUTED, is_hollow=True)], 0)
    room = label_width([_name(one) for one in shown], 0.42 * WIDTH)
    box = Box(room, top, WIDTH - 6, top + _ROW * len(rows))
    rates = [rate.estimate for one in shown for rate in (one.raw, one.length_controlled)]
    panel = Panel(svg, box, span(limits(rates), include=[50.0]), (len(rows) - 0.5, -0.5))
    panel.x_axis(label="percent won; a tie counts as half")
    panel.vertical(50)
    for place, row in enumerate(rows):
        if isinstance(row, str):
            svg.text(0, panel.at(50, place)[1] + 3, fitted(f"by {row}", WIDTH), kind="strong")
            continue
        panel.rows([(place, _name(row))], room)
        for rate, color, kind, shift in (
            (row.raw, MUTED, "raw", -0.17),
            (row.length_controlled, series(0), "length-controlled", 0.17),
        ):
            tip = f"{_name(row)}, {kind}, by {row.judge}: {estimate(rate.estimate, 1)} %"
            panel.estimate(place + shift, rate.estimate, color, tip, is_horizontal=True, is_hollow=kind == "raw")
    return Picture(
        "winrates",
        "Win rates",
        svg.finish(box.bottom + 12 + LINE + 6),
        "How often each policy's answer is judged better than the other's, as written and corrected for length. An "
        "interval that contains 50 shows no difference.",
        "summary.json: win_rates, from evaluation/verdicts.jsonl",
        ["policies", "judge", "principles", "length-controlled", "raw", "stratified", "queries", "longer / not"],
        [_table_row(one) for one in cells],
    )


def _name(cell: WinRate) -> str:
    scope = "" if cell.scope == "all" else f", {scope_name(cell.scope)}"
    return f"{short_name(cell.candidate)} vs {cell.baseline}{scope}"


def _table_row(cell: WinRate) -> list[str]:
    strata = cell.strata_n
    return [
        f"{cell.candidate} vs {cell.baseline}",
        cell.judge,
        scope_name(cell.scope),
        *(estimate(rate.estimate, 1) for rate in (cell.length_controlled, cell.raw, cell.stratified)),
        str(cell.queries),
        NONE if strata is None else f"{strata.longer} / {strata.not_longer}",
    ]
