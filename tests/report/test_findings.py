"""The verdict, its five numbers and the warnings."""

import json
from pathlib import Path
from typing import Any

import pytest

from sami.report import findings
from sami.report.run_files import RunFiles, read_run
from tests.support.report_runs import make_run, plainly


@pytest.fixture(scope="module")
def good(report_run: Path) -> RunFiles:
    return read_run(report_run)


@pytest.fixture(scope="module")
def looping(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """A run whose last iteration gains more than any other and writes code words."""

    def write(query: str, iteration: int, principle: str, positive: bool) -> str:
        text = plainly(query, iteration, principle, positive)
        return text + " Expert:Expert:Expert:Expert:Expert" if iteration == 2 else text

    return read_run(make_run(tmp_path_factory.mktemp("runs") / "looping", write=write, gain=0.4))


def with_summary(run: RunFiles, **changed: Any) -> RunFiles:
    return RunFiles(**{**run.__dict__, "summary": {**run.summary, **changed}})


def test_the_verdict_is_the_summarys(good: RunFiles) -> None:
    verdict = findings.verdict(good)
    assert verdict.standing == "better"
    assert verdict.headline == "iteration-2 is better than base on the principles it learned"
    assert verdict.sentence == good.summary["verdict"]


def test_the_five_numbers_are_those_of_the_summary(good: RunFiles) -> None:
    change = good.summary["comparisons"][-1]
    [cell] = [c for c in good.summary["win_rates"] if (c["candidate"], c["scope"]) == ("iteration-2", "learned")]
    tiles = findings.tiles(good)
    assert [tile.value for tile in tiles] == [
        f"{change['learned']['base_bound']['value']:+.3f}",
        f"{cell['length_controlled']['rate']:.1f}",
        f"{change['learned']['verifier_rate']['value']:+.1f}",
        f"{change['held_out']['base_bound']['value']:+.3f}",
        f"{change['learned']['bound']['value']:+.3f}",
    ]
    for tile, source in zip(
        tiles, (change["learned"]["base_bound"], None, change["learned"]["verifier_rate"]), strict=False
    ):
        if source:
            digits = 3 if tile.unit == "nats" else 1
            assert tile.interval == f"[{source['low']:+.{digits}f}, {source['high']:+.{digits}f}]"
            assert tile.n.startswith(f"{source['n']} ")
        assert tile.strip is not None
        assert 0 <= tile.strip.low <= tile.strip.value <= tile.strip.high <= 100


def test_an_unhealthy_policy_is_never_called_better(looping: RunFiles) -> None:
    assert looping.last is not None
    assert looping.last["health"]["failures"]
    # Even where a summary claims it: the page decides by the health that it shows.
    claimed = [{**c, "better": True, "healthy": True} for c in looping.summary["comparisons"]]
    for run in (looping, with_summary(looping, comparisons=claimed)):
        verdict = findings.verdict(run)
        assert verdict.standing == "unhealthy"
        assert verdict.headline == "iteration-2 is not called better than base: it breaks a health limit"
        assert findings.standing(run, run.policies[2]) == "not called better: unhealthy"
    assert findings.standing(looping, looping.policies[1]) == "better than base"


def test_a_broken_limit_comes_with_examples_that_show_it(looping: RunFiles) -> None:
    failures = [w for w in findings.health_warnings(looping) if w.is_failure]
    [loops] = [w for w in failures if "repeat themselves" in w.text]
    assert len({example["query"] for example in loops.examples}) == 3
    for example in loops.examples:
        assert "Expert:Expert" in example["text"]
        assert "repeats itself: Expert" in example["why"]
        assert example["id"] in {c.id for c in looping.responses["iteration-2"]}
    assert not [w for w in findings.health_warnings(looping) if w.is_failure and w.title.startswith("iteration-1")]


def test_a_judge_that_prefers_base_prevents_better(good: RunFiles) -> None:
    worse = {"rate": 48.0, "low": 45.0, "high": 51.0}
    cells = [{**c, "raw": worse, "length_controlled": worse} for c in good.summary["win_rates"]]
    run = with_summary(good, win_rates=cells)
    assert findings.verdict(run).standing == "not-better"
    assert findings.tiles(run)[1].reading.startswith("no difference shown: the interval holds 0")


def test_without_judges_the_tile_says_so(good: RunFiles) -> None:
    tile = findings.tiles(with_summary(good, win_rates=[]))[1]
    assert (tile.value, tile.reading) == ("–", "no judge was asked")


def test_held_out_principles_are_shown_as_they_are(good: RunFiles) -> None:
    comparison = json.loads(json.dumps(good.summary["comparisons"]))
    comparison[-1]["held_out"]["base_bound"] = {"value": -0.01, "low": -0.03, "high": 0.01, "n": 12}
    run = with_summary(good, comparisons=comparison)
    assert findings.tiles(run)[3].reading == "no difference shown: the interval holds 0"
    titles = [w.title for w in findings.health_warnings(run)]
    assert "No gain shown on held-out principles" in titles
    assert "No gain shown on held-out principles" not in [w.title for w in findings.health_warnings(good)]


def test_few_queries_cut_off_answers_and_lengths_are_told_of(good: RunFiles) -> None:
    policies = json.loads(json.dumps(good.policies))
    policies[0]["health"]["unfinished"] = 94.0
    policies[2]["health"] |= {"words_ratio": 1.9, "words": 19.0, "opening_share": 86.0, "opening": "thank you for"}
    policies[0]["health"]["words"] = 10.0
    texts = {w.title: w.text for w in findings.health_warnings(with_summary(good, policies=policies))}
    assert "12 queries" in texts["Few held-out queries"]
    assert "94 % of base's answers end at the limit" in texts["Most answers are cut off"]
    assert "longer: 19.0 words on average, 10.0 for base (1.90 times)" in texts["iteration-2 answers at another length"]
    assert "86 % of its answers start with “thank you for”" in texts["iteration-2 opens many answers alike"]


def test_a_run_without_iterations_has_no_verdict(good: RunFiles) -> None:
    run = with_summary(good, comparisons=[], policies=good.policies[:1])
    assert findings.verdict(run).standing == "none"
    assert findings.tiles(run) == []


def test_an_unfinished_run_says_so_far(good: RunFiles, tmp_path: Path) -> None:
    run = RunFiles(**{**good.__dict__, "is_summary_stored": False})
    assert findings.verdict(run).headline.startswith("So far: ")
