"""`sami winrate`: tables, JSON, annotations and warnings from a file of verdicts."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sami.evaluation import win_rate_table
from sami.evaluation.verdicts import Verdict, append_verdict
from sami.evaluation.win_rate import win_rates
from tests.support.command_line import refused
from tests.support.simulated import evaluation, verdict


def write(path: Path, verdicts: list[Verdict]) -> Path:
    for one in verdicts:
        append_verdict(path, one)
    return path


@pytest.fixture
def verdicts() -> list[Verdict]:
    return evaluation(np.random.default_rng(0), queries=120, quality=0.4, length=1.0, shift=0.1)


def test_json_is_what_the_function_gives(sami, verdicts, tmp_path):
    path = write(tmp_path / "v.jsonl", verdicts)
    code, out, err = sami("winrate", path, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == win_rates(verdicts)


def test_the_slope_may_be_shared(sami, tmp_path):
    both = [verdict(f"q{d}{i}", float(i < n), longer_by=d) for d, n in ((90, 8), (-90, 3)) for i in range(10)]
    both += [verdict(f"q90{i}", float(i < 7), longer_by=90, candidate="iteration-2") for i in range(10)]
    path = write(tmp_path / "v.jsonl", both)
    code, out, _ = sami("winrate", path, "--json", "--slope", "shared")
    assert code == 0
    assert json.loads(out) == win_rates(both, slope="shared")
    assert json.loads(out) != win_rates(both)


def test_the_table_shows_rates_intervals_and_what_is_behind_them(sami, tmp_path):
    judged = []
    for i in range(60):
        sign = 1 if i % 2 else -1
        for order in ("candidate_first", "baseline_first"):
            one = verdict(
                f"q{i}", float(i < 45), longer_by=sign, longer_by_tokens=sign, order=order, principles=["brief"]
            )
            judged += [replace(one, judge=judge) for judge in ("verifier", "human")]
    code, out, err = sami("winrate", write(tmp_path / "v.jsonl", judged))
    assert code == 0
    (cell, _) = win_rates(judged)
    raw = cell["raw"]
    assert f"75.0 [{raw['low']:.1f}, {raw['high']:.1f}]" in out
    assert "a tie counts half" in out
    for expected in ("iteration-1 vs base", "30/30", "100.0 %", "50.0 %", "200.0 vs 200.0", "brief"):
        assert expected in out
    assert "verifier and human agree on 100.0 % of 120 judgements (Cohen's kappa 1.00)." in out
    assert err.count("fewer than 50 queries in a stratum") == 2  # one for each judge, on stderr
    assert "warning" not in out


def test_names_are_never_markup_or_control_characters(sami, tmp_path):
    judge, policy = "[/red]:x: \x1b[2J", "p\u202e\nsami: done"
    file = tmp_path / "v.jsonl"
    for name in (judge, "other [bold]"):
        one = replace(verdict(principles=["[b]"]), judge=name, candidate=policy)
        file.open("a").write(json.dumps(one.as_json()) + "\n")
    code, out, err = sami("winrate", file)
    assert code == 0
    for text in ("[/red]:x: \\x1b[2J", "other [bold]", "p\\u202e", "[b]"):
        assert text in out
    assert "\nwarning: p\\u202e sami: done vs base by [/red]:x: \\x1b[2J: fewer" in "\n" + err
    assert not {"\x1b", "\u202e"} & {*out, *err}
    assert "\nsami:" not in out + err


def test_few_queries_in_a_stratum_are_warned_about():
    def warned(longer, shorter):
        judged = [verdict(f"a{i}", float(i % 2), longer_by=5, longer_by_tokens=1) for i in range(longer)]
        judged += [verdict(f"b{i}", float(i % 2), longer_by=-5, longer_by_tokens=-1) for i in range(shorter)]
        return " ".join(win_rate_table.warnings(win_rates(judged, samples=50)))

    assert warned(50, 50) == ""
    assert "all 50/49" in warned(50, 49)
    assert "all 49/50" in warned(49, 50)
    assert "extrapolation" not in warned(50, 49)
    assert "extrapolation" in warned(60, 0)
    assert "no length-controlled rate" in warned(60, 0)


def test_many_judgements_without_a_score_are_warned_about(verdicts):
    def warned(unscored):
        judged = [*verdicts[: 200 - unscored], *(verdict(f"u{i}", None) for i in range(unscored))]
        return " ".join(win_rate_table.warnings(win_rates(judged, samples=50)))

    assert "have no score" not in warned(10)  # 5 % of 200
    assert "5.5 % of the judgements (all) have no score" in warned(11)


def test_an_undefined_rate_is_a_dash(sami, tmp_path):
    code, out, _ = sami("winrate", write(tmp_path / "v.jsonl", [verdict("q1"), verdict("q1", None, judge="other")]))
    assert code == 0
    assert out.count("–") >= 5


def test_annotations_for_alpaca_eval_go_to_stdout(sami, verdicts, tmp_path):
    code, out, err = sami("winrate", write(tmp_path / "v.jsonl", verdicts), "--export", "alpaca")
    records = json.loads(out)
    assert (code, err, len(records)) == (0, "", len(verdicts))
    mean = sum(record["preference"] - 1 for record in records) / len(records)
    assert math.isclose(100 * mean, win_rates(verdicts)[0]["raw"]["rate"])


def test_bad_input_is_a_message_and_exit_code_2(sami, tmp_path):
    good = write(tmp_path / "good.jsonl", [verdict("q1"), verdict("q2")])
    cut = tmp_path / "cut.jsonl"
    cut.write_text(good.read_text()[:-30])
    refused(sami("winrate", cut), "Line 2 of ", "cut off")
    (tmp_path / "empty.jsonl").touch()
    refused(sami("winrate", tmp_path / "empty.jsonl"), "no verdicts")
    refused(sami("winrate", write(tmp_path / "unscored.jsonl", [verdict("q1", None)])), "None of the 1 judgements")
    refused(sami("winrate", good, "--export", "alpaca", "--json"), "--export")
    for option in (["--slope", "none"], ["--export", "csv"]):
        assert sami("winrate", good, *option)[0] == 2
