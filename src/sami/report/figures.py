"""The pictures of a page: each with its caption, the files it comes from, and its numbers as a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from sami.report.drawing import ACCENT, INK, MUTED, Drawing, drawing, series, whole_numbers
from sami.report.run_files import RunFiles
from sami.text.words import word_count
from sami.wording import NONE, difference, interval, number, rate

_MOST_ROWS = 60  # of the numbers under a picture


@dataclass(frozen=True)
class Picture:
    key: str
    title: str
    svg: str
    caption: str
    source: str
    """Files and keys of the run that the figures are read from."""
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def pictures(run: RunFiles) -> list[Picture]:
    """Every picture for which the run has figures, in the page's order."""
    made = [
        _bounds(run),
        _win_rates(run),
        _learned_and_held_out(run),
        _principles(run),
        _lengths(run),
        _matrices(run),
        _training(run),
    ]
    return [one for one in made if one is not None]


def _bounds(run: RunFiles) -> Picture | None:
    policies = [p for p in run.policies if p["information"]["bound"] is not None]
    if not policies:
        return None
    cap = math.log(run.recipe.get("sampling", {}).get("constitutions", 2))
    with drawing("bounds", "Information about the constitution by iteration", 2.9) as d:
        panels = d.axes(1, 2, sharey=True)
        for axes, prefix, title in (
            (panels[0], "base_", "Under the frozen base"),
            (panels[1], "", "By the policy itself"),
        ):
            _scopes_by_iteration(d, axes, policies, prefix)
            axes.axhline(cap, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
            axes.set_title(title)
        panels[0].set_ylim(0, cap * 1.12)
        panels[0].text(-0.3, cap, f"cap {cap:.3f}", color=MUTED, fontsize=8.5, va="bottom")
        panels[0].set_ylabel("nats per contrast")
        _scope_legend(panels[0], policies)
        svg = d.svg()
    keys = (("learned", "information"), ("held out", "information_held_out"))
    return Picture(
        "bounds",
        "Bound by iteration",
        svg,
        "What an answer tells about the constitution it was written under. Left, read by the base model before any "
        "training with the constitution's words masked: the figure that decides. Right, read by the policy itself, "
        "which code words can raise. Bars are 95 % intervals over queries.",
        "summary.json: policies[].information, information_held_out",
        ["policy", "principles", "under frozen base", "n", "by the policy", "n"],
        [
            [
                p["name"],
                scope,
                f"{number(p[key]['base_bound'])} {interval(p[key]['base_low'], p[key]['base_high'])}",
                str(p[key]["base_contrasts"]),
                f"{number(p[key]['bound'])} {interval(p[key]['low'], p[key]['high'])}",
                str(p[key]["contrasts"]),
            ]
            for p in policies
            for scope, key in keys
            if p[key]["bound"] is not None
        ],
    )


def _scopes_by_iteration(d: Drawing, axes: Any, policies: Sequence[dict[str, Any]], prefix: str) -> None:
    for key, label, colour, is_hollow, shift in (
        ("information", "learned", series(0), False, -0.06),
        ("information_held_out", "held out", series(1), True, 0.06),
    ):
        points = [
            (n + shift, p[key][f"{prefix}bound"], p)
            for n, p in enumerate(policies)
            if p[key][f"{prefix}bound"] is not None
        ]
        axes.plot([x for x, *_ in points], [y for _, y, _ in points], color=colour, linewidth=1.2)
        for x, y, p in points:
            limits = p[key][f"{prefix}low"], p[key][f"{prefix}high"]
            tip = f"{p['name']}, {label}: {number(y)} {interval(*limits)} nats"
            d.estimate(axes, x, y, limits, tip, colour=colour, is_hollow=is_hollow)
    whole_numbers(axes, lambda n: _short(policies[n]["name"]), len(policies))


def _scope_legend(axes: Any, policies: Sequence[dict[str, Any]]) -> None:
    axes.plot([], [], "o-", color=series(0), label="learned")
    if any(p["information_held_out"]["bound"] is not None for p in policies):
        axes.plot([], [], "o-", color=series(1), markerfacecolor="none", label="held out")
    axes.legend(loc="center left", bbox_to_anchor=(0, 0.78), handlelength=1.4)


def _win_rates(run: RunFiles) -> Picture | None:
    cells = run.summary.get("win_rates") or []
    if not cells:
        return None
    shown = [c for c in cells if c["scope"] != "all"] or list(cells)
    judges = list(dict.fromkeys(c["judge"] for c in shown))

    def label(cell: dict[str, Any]) -> str:
        scope = "" if cell["scope"] == "all" else f", {cell['scope'].replace('_', ' ')}"
        return f"{_short(cell['candidate'])} vs {cell['baseline']}{scope}"

    groups = [(judge, [c for c in shown if c["judge"] == judge]) for judge in judges]
    places: list[tuple[float, dict[str, Any]]] = []
    headings: list[tuple[float, str]] = []
    end = 0.0
    for judge, members in groups:
        headings.append((end, judge))
        places += [(end + n, cell) for n, cell in enumerate(members, start=1)]
        end += len(members) + 1.4
    with drawing("winrates", "Win rates with intervals", 0.75 + 0.24 * end) as d:
        (axes,) = d.axes()
        for y, cell in places:
            for kind, colour, is_hollow, shift in (
                ("raw", MUTED, True, -0.17),
                ("length_controlled", series(0), False, 0.17),
            ):
                if cell[kind]["rate"] is None:
                    continue
                tip = f"{label(cell)}, {kind.replace('_', '-')}, by {cell['judge']}: {rate(cell[kind])} %"
                d.estimate(
                    axes,
                    cell[kind]["rate"],
                    y + shift,
                    (cell[kind]["low"], cell[kind]["high"]),
                    tip,
                    colour=colour,
                    is_horizontal=True,
                    is_hollow=is_hollow,
                )
        axes.axvline(50, color=INK, linewidth=1)
        ticks = [*places, *headings]
        axes.set_yticks([y for y, _ in ticks], [label(t) if isinstance(t, dict) else f"by {t}" for _, t in ticks])
        for tick in axes.get_yticklabels()[len(places) :]:
            tick.set_color(INK)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(end - 0.8, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("percent won, a tie counts half; 50 is no difference")
        axes.plot([], [], "o", color=series(0), label="length-controlled")
        axes.plot([], [], "o", color=MUTED, markerfacecolor="none", label="raw")
        d.figure.legend(loc="outside upper left", ncols=2, handlelength=1)
        svg = d.svg()
    return Picture(
        "winrates",
        "Win rates",
        svg,
        "How often each policy's answer is judged better than the other's, as it is and at equal length. An interval "
        "that reaches 50 shows no difference.",
        "summary.json: win_rates, from evaluation/verdicts.jsonl",
        ["policies", "judge", "principles", "length-controlled", "raw", "stratified", "queries", "longer / not"],
        [
            [
                f"{c['candidate']} vs {c['baseline']}",
                c["judge"],
                c["scope"].replace("_", " "),
                rate(c["length_controlled"]),
                rate(c["raw"]),
                rate(c["stratified"]),
                str(c["queries"]),
                f"{c['strata_n']['longer']} / {c['strata_n']['not_longer']}",
            ]
            for c in cells
        ],
    )


def _learned_and_held_out(run: RunFiles) -> Picture | None:
    compared = run.summary.get("comparisons") or []
    if not compared:
        return None
    measures = (("base_bound", "Under the frozen base", "nats", 3), ("verifier_rate", "Own checks passed", "points", 1))
    scopes = (("learned", series(0), False), ("held_out", series(1), True))
    with drawing(
        "generalises", "Change against base on learned and on held-out principles", 1.35 + 0.42 * len(compared)
    ) as d:
        panels = d.axes(1, 2, sharey=True)
        for axes, (measure, title, unit, digits) in zip(panels, measures, strict=True):
            for row, one in enumerate(compared):
                for n, (scope, colour, is_hollow) in enumerate(scopes):
                    estimate = one[scope][measure]
                    if estimate["value"] is None:
                        continue
                    tip = f"{one['policy']}, {scope.replace('_', ' ')}: {difference(estimate, digits)} {unit}"
                    d.estimate(
                        axes,
                        estimate["value"],
                        row + 0.3 * (n - 0.5),
                        (estimate["low"], estimate["high"]),
                        tip,
                        colour=colour,
                        is_horizontal=True,
                        is_hollow=is_hollow,
                    )
            axes.axvline(0, color=INK, linewidth=1)
            axes.set_title(title)
            axes.set_xlabel(f"{unit} against base")
            axes.grid(visible=False, axis="y")
            axes.margins(x=0.12)
        panels[0].set_yticks(range(len(compared)), [_short(c["policy"]) for c in compared])
        panels[0].set_ylim(len(compared) - 0.4, -0.6)
        panels[0].tick_params(axis="y", length=0)
        panels[0].plot([], [], "o", color=series(0), label="learned")
        panels[0].plot([], [], "o", color=series(1), markerfacecolor="none", label="held out, never trained on")
        d.figure.legend(loc="outside upper left", ncols=2, handlelength=1)
        svg = d.svg()
    return Picture(
        "generalises",
        "Learned against held-out principles",
        svg,
        "The change against base, pair by pair on the same queries. An interval that holds 0 shows no change.",
        "summary.json: comparisons[].learned, held_out",
        ["policy", "principles", "under frozen base, nats", "own bound, nats", "checks passed, points"],
        [
            [
                one["policy"],
                scope.replace("_", " "),
                difference(one[scope]["base_bound"]),
                difference(one[scope]["bound"]),
                difference(one[scope]["verifier_rate"], 1),
            ]
            for one in compared
            for scope, *_ in scopes
            if one[scope]["bound"]["value"] is not None
        ],
    )


def _principles(run: RunFiles) -> Picture | None:
    base, last = run.base, run.last
    if base is None or last is None:
        return None
    both = [(key, base["principles"][key], last["principles"][key]) for key in last["principles"]]
    both = [(key, a, b) for key, a, b in both if a["base_bound"] is not None and b["base_bound"] is not None]
    if not both:
        return None
    both.sort(key=lambda one: (not one[2]["learned"], -(one[2]["base_bound"] - one[1]["base_bound"])))
    label = {key: key if after["learned"] else f"{key} (held out)" for key, _, after in both}
    with drawing("principles", "Each principle before and after", 1.1 + 0.24 * len(both)) as d:
        panels = d.axes(1, 2, sharey=True)
        for row, (key, before, after) in enumerate(both):
            colour = series(0) if after["learned"] else series(1)
            for axes, measure, scale, digits, unit in (
                (panels[0], "base_bound", 1, 3, "nats"),
                (panels[1], "verifier_rate", 100, 0, "%"),
            ):
                if before[measure] is None or after[measure] is None:
                    continue
                start, end = scale * before[measure], scale * after[measure]
                tip = f"{key}: {number(start, digits)} before, {number(end, digits)} {unit} after"
                (line,) = axes.plot([start, end], [row, row], color=colour, linewidth=2)
                d.tip(line, tip)
                axes.plot([start], [row], "o", color=MUTED, markerfacecolor="none", markeredgewidth=1.4)
                (point,) = axes.plot([end], [row], "o", color=colour)
                d.tip(point, tip)
        panels[0].set_yticks(range(len(both)), [label[key] for key, *_ in both])
        panels[0].set_ylim(len(both) - 0.4, -0.6)
        panels[0].tick_params(axis="y", length=0)
        panels[0].set_title("Under the frozen base")
        panels[0].set_xlabel("nats")
        panels[1].set_title("Own check passed")
        panels[1].set_xlabel("percent")
        for axes in panels:
            axes.margins(x=0.1)
        panels[0].plot([], [], "o", color=MUTED, markerfacecolor="none", label="base")
        panels[0].plot([], [], "o", color=series(0), label=last["name"])
        d.figure.legend(loc="outside upper left", ncols=2, handlelength=1)
        svg = d.svg()
    return Picture(
        "principles",
        "Each principle's change",
        svg,
        f"From base to {last['name']}, largest gain first, held-out principles at the end. Each rests on "
        f"{_range([b['contrasts'] for *_, b in both])} contrasts only, so read the pattern, not single rows.",
        "summary.json: policies[].principles",
        ["principle", "under frozen base, nats", "contrasts", "check passed, %", "interval after", "checks"],
        [
            [
                label[key],
                f"{number(a['base_bound'])} → {number(b['base_bound'])}",
                str(b["contrasts"]),
                NONE
                if b["verifier_rate"] is None
                else f"{100 * a['verifier_rate']:.0f} → {100 * b['verifier_rate']:.0f}",
                NONE if b["verifier_rate"] is None else interval(100 * b["verifier_low"], 100 * b["verifier_high"], 0),
                str(b["verdicts"]),
            ]
            for key, a, b in both
        ],
    )


def _lengths(run: RunFiles) -> Picture | None:
    words = {
        name: np.array([word_count(text) for contrast in contrasts for text in contrast.responses])
        for name, contrasts in run.responses.items()
    }
    if not words:
        return None
    longest = max(int(np.percentile(w, 99.5)) for w in words.values()) + 1
    bins = np.linspace(0, longest, min(longest, 40) + 1)
    with drawing("lengths", "Length of answers by policy", 0.75 + 0.5 * len(words)) as d:
        panels = d.axes(len(words), 1, sharex=True)
        for n, (axes, (name, counted)) in enumerate(zip(panels, words.items(), strict=True)):
            heights, _ = np.histogram(np.minimum(counted, longest), bins)
            stairs = axes.stairs(heights, bins, fill=True, color=policy_colour(n), alpha=0.75)
            middle = float(np.median(counted))
            d.tip(stairs, f"{name}: median {middle:.0f} words, mean {counted.mean():.1f}, {len(counted)} answers")
            axes.axvline(middle, color=INK, linewidth=1.4)
            axes.set_yticks([])
            axes.set_ylabel(_short(name), rotation=0, ha="right", va="center", color=INK)
            axes.spines["left"].set_visible(False)
            axes.grid(visible=False, axis="y")
        panels[-1].set_xlabel("words in an answer; the line is the median")
        svg = d.svg()
    return Picture(
        "lengths",
        "Response lengths",
        svg,
        "Judges tend to prefer longer answers, so a change of length is a reason to look at length-controlled rates.",
        "evaluation/responses/*.parquet: responses",
        ["policy", "answers", "mean words", "5 %", "median", "95 %"],
        [
            [name, str(len(w)), f"{w.mean():.1f}", *(f"{np.percentile(w, q):.0f}" for q in (5, 50, 95))]
            for name, w in words.items()
        ],
    )


def _matrices(run: RunFiles) -> Picture | None:
    last = run.last["name"] if run.last else None
    wanted = [("base", "policy", "base, by itself")]
    if last in run.scores:
        wanted += [(last, "policy", f"{_short(last)}, by itself"), (last, "base", f"{_short(last)}, by frozen base")]
    shown = []
    for policy, scorer, title in wanted:
        matrices = [s["matrix"] for s in run.scores.get(policy, {}).get(scorer, []) if s["learned"]]
        if matrices and len({len(m) for m in matrices}) == 1:
            shown.append((title, np.array(matrices).mean(0), len(matrices)))
    if not shown:
        return None
    low, high = min(m.min() for _, m, _ in shown), max(m.max() for _, m, _ in shown)
    size = len(shown[0][1])
    with drawing("matrices", "Mean log-probability of each answer under each constitution", 2.35) as d:
        panels = d.axes(1, len(shown))
        for number_of, (axes, (title, matrix, _)) in enumerate(zip(panels, shown, strict=True)):
            for row in range(size):
                for column in range(size):
                    value = matrix[row, column]
                    shade = 0.08 + 0.72 * (value - low) / (high - low) if high > low else 0.4
                    (cell,) = axes.fill(
                        [column, column + 1, column + 1, column],
                        [row, row, row + 1, row + 1],
                        color=ACCENT,
                        alpha=shade,
                        linewidth=0,
                    )
                    d.tip(
                        cell, f"{title}: answer {column + 1} under constitution {row + 1}: {value:.3f} nats per token"
                    )
                    if size <= 4:
                        axes.text(
                            column + 0.5,
                            row + 0.5,
                            f"{value:.2f}".replace("-", "−"),
                            ha="center",
                            va="center",
                            fontsize=9 if size == 2 else 7,
                        )
            axes.set_title(title, fontsize=9)
            axes.set_aspect("equal")
            axes.set_xlim(0, size)
            axes.set_ylim(size, 0)
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set_visible(False)
            middle = [n + 0.5 for n in range(size)]
            axes.set_xticks(middle, [str(n + 1) for n in range(size)], color=MUTED)
            axes.set_yticks(middle, [str(n + 1) if number_of == 0 else "" for n in range(size)])
            axes.tick_params(length=0)
            axes.set_xlabel("answer")
        panels[0].set_ylabel("constitution")
        svg = d.svg()
    return Picture(
        "matrices",
        f"The {size} × {size} matrix before and after",
        svg,
        "Mean log-probability per token of each answer under each constitution, learned principles. A policy that "
        "follows its constitutions is strong in colour on the diagonal and pale beside it.",
        "evaluation/scores/*.json: policy[].matrix, base[].matrix",
        ["scored", "diagonal", "beside it", "difference, nats per token", "contrasts"],
        [
            [
                title,
                number(float(np.trace(m)) / size),
                number(_beside(m)),
                number(float(np.trace(m)) / size - _beside(m)),
                str(count),
            ]
            for title, m, count in shown
        ],
    )


def _beside(matrix: Any) -> float:
    size = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (size * size - size))


_TRAINING = (
    ("bound", "Bound on the step's contrasts, nats"),
    ("loss", "Loss, nats"),
    ("column_accuracy", "Column accuracy"),
    ("grad_norm", "Gradient norm"),
    ("kl", "KL from base, nats per token"),
    ("weights_changed", "Weights changed after rounding"),
)


def _training(run: RunFiles) -> Picture | None:
    if not any(run.metrics.values()):
        return None
    keys = [(k, t) for k, t in _TRAINING if any(k in step for steps in run.metrics.values() for step in steps)]
    rows = math.ceil(len(keys) / 2)
    with drawing("training", "Training curves", 0.35 + 1.45 * rows) as d:
        panels = d.axes(rows, 2, sharex=True)
        for axes, (key, title) in zip(panels, keys, strict=False):
            for iteration, steps in run.metrics.items():
                points = [(s["step"], s[key]) for s in steps if s.get(key) is not None]
                if not points:
                    continue
                is_few = len(points) <= 30
                (line,) = axes.plot(
                    *zip(*points, strict=True), "o-" if is_few else "-", color=policy_colour(iteration), markersize=3
                )
                d.tip(
                    line,
                    f"iteration {iteration}: "
                    + ", ".join(f"{value:.3g} at step {step}" for step, value in (points[0], points[-1])),
                )
            axes.set_title(title, fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels[len(keys) :]:
            axes.set_visible(False)
        for iteration in run.metrics:
            panels[0].plot([], [], "-", color=policy_colour(iteration), label=f"iteration {iteration}")
        d.figure.legend(loc="outside upper left", ncols=4, handlelength=1.4)
        d.figure.supxlabel("step", color=MUTED, fontsize=9)
        svg = d.svg()
    every = [(iteration, step) for iteration, steps in run.metrics.items() for step in steps]
    stride = max(1, math.ceil(len(every) / _MOST_ROWS))
    return Picture(
        "training",
        "Training curves",
        svg,
        "One point a step. The bound here is on the contrasts that the step trains on: it says nothing of new queries."
        + (f" The table holds every {stride}th step." if stride > 1 else ""),
        "iteration-*/metrics.jsonl",
        ["iteration", "step", *(title for _, title in keys), "learning rate"],
        [
            [str(i), str(s["step"]), *(_figure(s.get(k)) for k, _ in keys), _figure(s.get("learning_rate"))]
            for i, s in every[::stride]
        ],
    )


def policy_colour(number_of: int) -> str:
    """Base is muted; policies after it have a colour each."""
    return MUTED if number_of == 0 else series(number_of + 1)


def _short(name: str) -> str:
    return name.replace("iteration-", "iter. ")


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def _figure(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"
