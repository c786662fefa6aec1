"""Pictures show the run's figures at the right places, whatever the run lacks and whatever its names contain."""

import html
import re
from dataclasses import replace

import pytest

from sami.loop.results import Summary
from sami.report.plots import overlaid, pictures
from sami.report.plots.svg import WIDTH, text_width
from sami.report.run_files import read_run
from sami.wording import estimate
from tests.support.hostile import HOSTILE
from tests.support.report_runs import make_run


@pytest.fixture
def run(report_run):
    return read_run(report_run)


def by_key(run):
    return {picture.key: picture for picture in pictures(run)}


def marks(picture, tip):
    """Places of the points whose tip starts with the given text."""
    found = re.findall(
        r'<title>([^<]*)</title>(?:<path[^>]*>)*<circle class="[^"]*" cx="([\d.]+)" cy="([\d.]+)"', picture.svg
    )
    return [(float(x), float(y)) for title, x, y in found if title.startswith(tip)]


def test_every_picture_has_its_figures_as_tips_and_as_a_table(run):
    made = by_key(run)
    assert list(made) == ["bounds", "winrates", "generalizes", "principles", "lengths", "matrices", "training"]
    figure = estimate(run.policies[2].information.frozen)
    assert f"<title>iteration-2, learned: {figure} nats</title>" in made["bounds"].svg
    assert ["iteration-2", "learned", figure, "24"] in [row[:4] for row in made["bounds"].rows]
    for picture in made.values():
        assert picture.rows
        assert {len(row) for row in picture.rows} == {len(picture.header)}
        assert "<title>" in picture.svg


def test_marks_are_as_far_apart_as_their_figures(run):
    bounds = by_key(run)["bounds"]
    values = [policy.information.frozen.value or 0.0 for policy in run.policies]
    (_, first), (_, second), (_, third) = (marks(bounds, f"{p.name}, learned")[0] for p in run.policies)
    assert (first - third) / (first - second) == pytest.approx(
        (values[2] - values[0]) / (values[1] - values[0]), rel=0.02
    )
    assert first > second > third  # the picture's y runs downwards


def test_a_win_rate_lies_right_of_half_if_it_is_above(run):
    rate = run.summary.decisive_rates("iteration-2", "base")[0]
    assert rate.raw.rate is not None
    picture = by_key(run)["winrates"]
    reference = re.search(r'<path class="reference" d="M([\d.]+)', picture.svg)
    assert reference is not None
    [(x, _)] = marks(picture, "iter. 2 vs base, learned, raw")
    assert (x > float(reference[1])) == (rate.raw.rate > 50)


def test_what_a_run_lacks_is_not_drawn(run):
    empty = replace(run, summary=Summary(policies=[]), responses={}, scores={}, metrics={}, verdicts=[])
    assert pictures(empty) == []
    assert overlaid([empty, empty], ["a", "b"]) == []
    run.summary.win_rates, run.summary.comparisons = [], []
    assert not {"winrates", "generalizes"} & set(by_key(run))


def test_names_act_as_text_and_stay_inside_the_picture(run):
    for cell in run.summary.win_rates:
        cell.judge = cell.candidate = HOSTILE[2] * 9
    run.summary.comparisons[0].policy = HOSTILE[7] + "\ud800"
    run.policies[1].name = HOSTILE[0]
    svgs = "".join(picture.svg for picture in pictures(run))
    assert "⟨U+202E⟩override" in svgs
    assert not re.search("<script|<img|[\u202a-\u202e\ud800]", svgs)
    for x, rest, text in re.findall(r'<text x="([\d.-]+)"([^>]*)>([^<]*)</text>', svgs):
        width = text_width(html.unescape(text))
        left = float(x) - {"end": width, "middle": width / 2}.get("".join(re.findall('anchor="(.*?)"', rest)), 0)
        assert -1 < left < left + width < WIDTH + 1, text


def test_runs_are_overlaid_in_colors_of_their_own(run, tmp_path):
    other = read_run(make_run(tmp_path / "other", iterations=1))
    made = {picture.key: picture for picture in overlaid([run, other], ["first", "second"])}
    assert list(made) == [
        "overlay-base",
        "overlay-held-out",
        "overlay-checks",
        "overlay-winrates",
        "overlay-own",
        "overlay-training",
    ]
    for picture in made.values():
        assert {"series-0", "series-1"} <= set(re.findall(r'class="(series-\d)"', picture.svg))
        assert {row[0] for row in picture.rows} == {"first", "second"}
    assert ["second", "iteration-1", estimate(other.policies[1].information.own)] in made["overlay-own"].rows
