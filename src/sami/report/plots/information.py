"""Pictures of information: by iteration, on learned against held-out principles, and for each principle."""

import math
from collections.abc import Sequence

from sami.evaluation.bootstrap import Estimate
from sami.loop.results import PolicyResult, PrincipleResult, Scope
from sami.report.plots.panel import Box, Panel, columns, label_width, limits, span
from sami.report.plots.picture import Picture, scope_name, short_name
from sami.report.plots.svg import LINE, MUTED, WIDTH, Key, Svg, series
from sami.report.run_files import RunFiles
from sami.wording import NONE, difference, estimate, interval, number

SCOPES: tuple[tuple[Scope, str, bool], ...] = (("learned", series(0), False), ("held_out", series(1), True))


def bounds(run: RunFiles) -> Picture | None:
    """The bound of each policy, by the frozen base model and by the policy itself."""
    policies = [one for one in run.policies if one.information.bound is not None]
    if not policies:
        return None
    cap = math.log(run.constitutions)
    scopes = [s for s in SCOPES if any(p.information_on(s[0]).bound is not None for p in policies)]
    svg = Svg("Information about the constitution by iteration")
    top = svg.legend([Key(scope_name(s), color, is_hollow) for s, color, is_hollow in scopes], 0)
    boxes = columns(Box(30, top + LINE, WIDTH - 4, top + LINE + 150), 2)
    for n, (box, title) in enumerate(zip(boxes, ("Under the frozen base", "By the policy itself"), strict=True)):
        figures = {s: [_figure(p, s, is_frozen=n == 0) for p in policies] for s, *_ in scopes}
        lows = limits([f for of_scope in figures.values() for f in of_scope])
        panel = Panel(svg, box, (-0.4, len(policies) - 0.6), (min([0.0, *lows]), cap * 1.12))
        panel.title(title)
        panel.y_axis(labels=n == 0)
        panel.x_axis([(i, short_name(p.name)) for i, p in enumerate(policies)], grid=False)
        panel.horizontal(cap, "cap")
        if n == 0:
            svg.text(box.left + 3, panel.at(0, cap)[1] - 3, f"cap {cap:.3f}")
        for place, (scope, color, is_hollow) in enumerate(scopes):
            shift = 0.12 * (place - 0.5)
            known = [(i + shift, f, policies[i]) for i, f in enumerate(figures[scope]) if f.value is not None]
            panel.curve([(x, f.value) for x, f, _ in known if f.value is not None], color, kind="thin")
            for x, figure, policy in known:
                tip = f"{policy.name}, {scope_name(scope)}: {estimate(figure)} nats"
                panel.estimate(x, figure, color, tip, is_hollow=is_hollow)
    return Picture(
        "bounds",
        "Bound by iteration",
        svg.finish(boxes[0].bottom + 18),
        "How much an answer reveals about the constitution it was written under. Left: read by the base model before "
        "training, with the constitution's own words masked; this figure decides. Right: read by the policy itself, "
        "which code words can raise. Bars are 95 % intervals over queries.",
        "summary.json: policies[].information, information_held_out",
        ["policy", "principles", "under frozen base", "n", "by the policy", "n"],
        [
            [
                policy.name,
                scope_name(scope),
                estimate(info.frozen),
                str(info.base_contrasts),
                estimate(info.own),
                str(info.contrasts),
            ]
            for policy in policies
            for scope, *_ in scopes
            if (info := policy.information_on(scope)).bound is not None
        ],
    )


def _figure(policy: PolicyResult, scope: Scope, *, is_frozen: bool) -> Estimate:
    info = policy.information_on(scope)
    return info.frozen if is_frozen else info.own


def learned_and_held_out(run: RunFiles) -> Picture | None:
    """The change from base on principles that were trained on, and on those that were not."""
    compared = run.summary.comparisons
    if not compared:
        return None
    svg = Svg("Change from base on learned and on held-out principles")
    keys = [Key("learned", series(0)), Key("held out, never trained on", series(1), is_hollow=True)]
    top = svg.legend(keys, 0) + LINE
    rows = [(float(n), short_name(one.policy)) for n, one in enumerate(compared)]
    room = label_width([name for _, name in rows])
    boxes = columns(Box(room, top, WIDTH - 6, top + 30 * len(rows)), 2)
    for n, (box, title, unit, digits) in enumerate(
        zip(boxes, ("Frozen base", "Own checks passed"), ("nats", "points"), (3, 1), strict=True)
    ):
        changes = [
            (row, one.policy, scope, one.gains(scope).base_bound if n == 0 else one.gains(scope).verifier_rate)
            for row, one in enumerate(compared)
            for scope, *_ in SCOPES
        ]
        panel = Panel(svg, box, span(limits([gain for *_, gain in changes]), include=[0.0]), (len(rows) - 0.5, -0.5))
        panel.title(title)
        panel.x_axis(label=f"{unit}, change from base")
        panel.vertical(0)
        if n == 0:
            panel.rows(rows, room)
        for row, name, scope, gain in changes:
            color, is_hollow = next((c, h) for s, c, h in SCOPES if s == scope)
            tip = f"{name}, {scope_name(scope)}: {difference(gain, digits, unit)}"
            place = row + (0.16 if is_hollow else -0.16)
            panel.estimate(place, gain, color, tip, is_horizontal=True, is_hollow=is_hollow)
    return Picture(
        "generalizes",
        "Learned and held-out principles",
        svg.finish(boxes[0].bottom + 32),
        "The change from base, paired on the same queries. An interval that contains 0 shows no change.",
        "summary.json: comparisons[].learned, held_out",
        ["policy", "principles", "under frozen base, nats", "own bound, nats", "checks passed, points"],
        [
            [
                one.policy,
                scope_name(scope),
                difference(gains.base_bound),
                difference(gains.bound),
                difference(gains.verifier_rate, 1),
            ]
            for one in compared
            for scope, *_ in SCOPES
            if (gains := one.gains(scope)).bound.value is not None
        ],
    )


Change = tuple[str, PrincipleResult, PrincipleResult]  # name, before, after


def principles(run: RunFiles) -> Picture | None:
    """Each principle before and after."""
    base, last = run.base, run.last
    changes = _changes(base, last) if base is not None and last is not None else []
    if last is None or not changes:
        return None
    svg = Svg("Each principle before and after")
    top = svg.legend([Key("base", MUTED, is_hollow=True), Key(last.name, series(0))], 0) + LINE
    rows = [(float(n), name) for n, (name, *_) in enumerate(changes)]
    room = label_width([name for _, name in rows])
    boxes = columns(Box(room, top, WIDTH - 6, top + 17 * len(rows)), 2)
    frozen = [(before.base_bound, after.base_bound) for _, before, after in changes]
    checks = [(_percent(before.verifier_rate), _percent(after.verifier_rate)) for _, before, after in changes]
    for n, (box, title, unit, digits, ends) in enumerate(
        zip(boxes, ("Frozen base", "Own check passed"), ("nats", "%"), (3, 0), (frozen, checks), strict=True)
    ):
        values = [value for pair in ends for value in pair if value is not None]
        panel = Panel(svg, box, span(values or [0.0]), (len(rows) - 0.5, -0.5))
        panel.title(title)
        panel.x_axis(label="nats" if n == 0 else "percent")
        if n == 0:
            panel.rows(rows, room)
        for row, ((name, _, after), (start, end)) in enumerate(zip(changes, ends, strict=True)):
            if start is not None and end is not None:
                tip = f"{name}: {number(start, digits)} before, {number(end, digits)} {unit} after"
                _change(panel, row, start, end, series(0) if after.learned else series(1), tip)
    return Picture(
        "principles",
        "Change of each principle",
        svg.finish(boxes[0].bottom + 32),
        f"From base to {last.name}: largest gain first, held-out principles at the end. Each row rests on only "
        f"{_range([after.contrasts for *_, after in changes])} contrasts, so read the pattern rather than single rows.",
        "summary.json: policies[].principles",
        ["principle", "under frozen base, nats", "contrasts", "check passed, %", "interval after", "checks"],
        [_principle_row(*change) for change in changes],
    )


def _changes(base: PolicyResult, last: PolicyResult) -> list[Change]:
    """Principles that both policies have figures for: learned ones first, by their gain."""
    found = []
    for key, after in last.principles.items():
        before = base.principles.get(key)
        if before is not None and before.base_bound is not None and after.base_bound is not None:
            gain = after.base_bound - before.base_bound
            found.append(((not after.learned, -gain), (key if after.learned else f"{key} (held out)", before, after)))
    return [change for _, change in sorted(found, key=lambda one: one[0])]


def _change(panel: Panel, row: int, start: float, end: float, color: str, tip: str) -> None:
    with panel.svg.group(color, tip):
        places = [panel.at(start, row), panel.at(end, row)]
        panel.svg.line(places, "hit")
        panel.svg.line(places, "range")
        panel.svg.point(*places[1])
    with panel.svg.group(MUTED):
        panel.svg.point(*places[0], is_hollow=True)


def _principle_row(name: str, before: PrincipleResult, after: PrincipleResult) -> list[str]:
    then, now = _percent(before.verifier_rate), _percent(after.verifier_rate)
    return [
        name,
        f"{number(before.base_bound)} → {number(after.base_bound)}",
        str(after.contrasts),
        NONE if now is None else f"{number(then, 0)} → {number(now, 0)}",
        interval(_percent(after.verifier_low), _percent(after.verifier_high), 0) or NONE,
        str(after.verdicts),
    ]


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
