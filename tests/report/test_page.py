"""The page as a file: self-contained, traceable to the run's files, and safe whatever a model wrote."""

import base64
import gzip
import hashlib
import html
import json
import random
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sami.cli import app
from sami.contrasts import read_contrasts, write_contrasts
from sami.errors import InputError
from sami.evaluation.pairs import from_contrasts
from sami.loop.directory import RunDirectory
from sami.loop.summary import summarize
from sami.principles import load_principles
from sami.recipe import load_recipe
from sami.report import write_report
from sami.report.embedding import packed, visible
from tests.support.hostile import HOSTILE
from tests.support.report_runs import make_run, plainly


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of scripts."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements = []
        self.scripts = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def data_of(page):
    found = re.search(r'id="data">"([^"]*)"<', page)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found.group(1))))


@pytest.fixture(scope="module")
def run(report_run):
    return report_run


@pytest.fixture(scope="module")
def page(run):
    assert write_report([run]) == run / "report.html"
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_allows_only_its_own_script(page):
    parsed = Parsed(page)
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:,")), (tag, value)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    script, *rest = [text for text in parsed.scripts if not text.startswith('"H4sI')]  # gzip in base64
    assert not rest
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [a["content"] for t, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_the_sections_are_in_order_and_ids_are_unique(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    sections = ["verdict-title", "policies-title", "plots-title", "answers-title", "health-title", "run-title"]
    assert [name for name in ids if name in sections] == sections


def test_the_page_shows_recipe_versions_seeds_and_timings(page, run):
    text = html.unescape(page)
    assert (run / "recipe.yaml").read_text() in text
    summary = json.loads((run / "summary.json").read_text())
    for name, value in summary["versions"].items():
        assert f'<th scope="row">{name}</th><td>{value}</td>' in page
    for key in ("queries.seed", "sampling.seed", "generation.seed", "training.seed", "evaluation.seed"):
        assert f'<th scope="row">{key}</th><td>0</td>' in page
    assert '<th scope="row">train-1</th><td>12.3 s</td>' in page


def test_the_command_that_repeats_the_run_has_its_recipe(page, run):
    [command] = re.findall(r'<pre class="command"><code>(.*?)</code>', page)
    words = html.unescape(command).split()
    assert words[:2] == ["sami", "run"]
    assert words[-2:] == ["--output", f"{run}-again"]
    again, first = load_recipe(words[2], [words[3]]), load_recipe(run / "recipe.yaml")
    assert again.model_copy(update={"principles": first.principles}) == first
    assert Path(again.principles) == (run / "principles.yaml").resolve()


def test_the_answers_in_the_page_are_those_of_the_run(page, run):
    data = data_of(page)
    assert [p["name"] for p in data["policies"]] == ["base", "iteration-1", "iteration-2"]
    assert len(data["items"]) == 36
    scores = json.loads((run / "evaluation" / "scores" / "iteration-2.json").read_text())
    passed = {(v["contrast"], v["constitution"]): v["passed"] for v in scores["verdicts"]}
    for item, contrast in zip(
        data["items"], read_contrasts(run / "evaluation/responses/iteration-2.parquet"), strict=True
    ):
        assert (item["id"], item["query_id"]) == (contrast.id, contrast.id.split("-")[0])
        for number, constitution in enumerate(item["constitutions"]):
            answer = constitution["answers"][2]
            assert answer["text"] == contrast.responses[number]
            if (contrast.id, number) in passed:
                assert answer["checks"][0][2] == passed[contrast.id, number]
                assert answer["judged"][0][:2] == [0, 0]
            assert ("unfinished" in answer.get("flags", {})) == (contrast.finish_reasons[number] == "length")


def test_reasoning_is_in_the_page_apart_from_the_answer_and_changes_no_count(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    file = folder / "evaluation" / "responses" / "base.parquet"
    write_contrasts(file, [replace(c, reasoning=["Hmm, calm calm calm.", ""]) for c in read_contrasts(file)])
    before, after = (data_of(write_report([one], tmp_path / "page.html").read_text()) for one in (run, folder))
    for item in after["items"]:
        [thinking, plain] = [constitution["answers"][0] for constitution in item["constitutions"]]
        assert thinking.pop("reasoning") == "Hmm, calm calm calm."
        assert "reasoning" not in plain
    assert after["items"] == before["items"]


def test_hostile_text_stays_text(hostile_run, tmp_path):
    run = shutil.copytree(hostile_run, tmp_path / "run")
    for name in ("principles.yaml", "recipe.yaml"):
        text = (run / name).read_text()
        (run / name).write_text(
            text.replace("Be calm.", HOSTILE[1].replace("'", "")).replace("tiny", "m</pre><script>x")
        )
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"model": HOSTILE[0], "verdict": HOSTILE[2] + "\ud800 half"}
    summary["versions"][HOSTILE[1]] = HOSTILE[3]
    summary["policies"][1]["health"] |= {"opening": HOSTILE[5] + "\udfff", "opening_share": 90.0}
    (run / "summary.json").write_text(json.dumps(summary))
    page = write_report([run]).read_text(encoding="utf-8")
    parsed = Parsed(page)
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    assert not [tag for tag, _ in parsed.elements if tag in ("img", "iframe", "object", "embed")]
    assert [tag for tag, _ in parsed.elements].count("style") == 1
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    outside = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", outside)
    assert "⟨U+D800⟩ half" in page
    texts = [c["answers"][0]["text"] for item in data_of(page)["items"] for c in item["constitutions"]]
    assert {hostile for hostile in HOSTILE if any(text.startswith(hostile) for text in texts)} == set(HOSTILE)


def test_invisible_characters_are_spelled_out():
    assert visible("a\u202eb\x00\ud800") == "a⟨U+202E⟩b⟨U+0000⟩⟨U+D800⟩"
    assert visible("tab\tline\nemoji 👩‍🚀 été") == "tab\tline\nemoji 👩‍🚀 été"


def test_packed_data_has_no_character_that_could_end_a_script():
    value = {"text": [*HOSTILE, "\ud800 half"]}
    text = packed(value)
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", text)
    assert json.loads(gzip.decompress(base64.b64decode(text))) == value


def test_partial_runs_show_what_is_missing_and_how_to_resume(run, tmp_path):
    partial = shutil.copytree(run, tmp_path / "partial")
    for name in ("summary.json", "evaluation/verdicts.jsonl", "evaluation/scores/iteration-2.json"):
        (partial / name).unlink()
    page = write_report([partial]).read_text()
    assert "This run is not complete" in page
    assert "iteration-2 has answered and is not scored." in page
    assert "So far: iteration-1 is better than base" in page
    assert f"sami run {partial}/recipe.yaml --output {partial}" in page
    shutil.rmtree(partial / "evaluation")
    page = write_report([partial]).read_text()
    assert "No verdict yet" in page
    assert "Nothing is measured yet." in page
    assert 'id="data"' not in page
    for name in ("recipe.yaml", "principles.yaml"):
        (partial / name).write_bytes(b"\xff\xfe{")
    assert "recipe.yaml cannot be read" in write_report([partial]).read_text()


def test_a_baseline_has_its_answers_and_checks(run, tmp_path):
    with_dpo = shutil.copytree(run, tmp_path / "run")
    responses = with_dpo / "evaluation" / "responses"
    shutil.copy(responses / "iteration-1.parquet", responses / "dpo.parquet")
    recipe, principles = load_recipe(with_dpo / "recipe.yaml"), load_principles(with_dpo / "principles.yaml")
    queries = {f"Query {n}?": f"q{n}" for n in range(12)}
    dpo = from_contrasts("dpo", read_contrasts(responses / "dpo.parquet"), queries, ["calm"])
    summary = json.loads((with_dpo / "summary.json").read_text())
    found = summarize(RunDirectory(with_dpo), recipe, principles, ["base"], baselines=[dpo])
    summary["policies"].append(found.policies[-1].as_json())
    summary["win_rates"] += [{**cell, "baseline": "dpo"} for cell in summary["win_rates"]]
    (with_dpo / "summary.json").write_text(json.dumps(summary))
    page = write_report([with_dpo]).read_text()
    data = data_of(page)
    assert data["policies"][3] == {"name": "dpo", "iteration": None}
    for item in data["items"]:
        assert item["frozen"][3] is None
        for constitution in item["constitutions"]:
            _, first, _, other = constitution["answers"]
            assert (other["text"], other.get("checks"), other.get("flags")) == (
                first["text"],
                first.get("checks"),
                first.get("flags"),
            )
    assert "iter. 2 vs dpo, learned" in page
    assert '<th scope="row">dpo</th><td class="text">baseline</td>' in page


def test_several_runs_are_compared(run, tmp_path):
    other = make_run(
        tmp_path / "other" / "run", settings={"training": {"iterations": 1, "steps": [3], "lr": 1e-4}}, iterations=1
    )
    (run / "report.html").touch()  # there to be linked, whatever test came first
    target = write_report([run, other], tmp_path / "comparison.html")
    page = target.read_text()
    names = [run.name, "run"]
    assert all(name in page for name in names)
    assert re.search(r'<th scope="row">training.lr</th><td>\[1.5e-05\]</td><td>\[0.0001\]</td>', page)
    assert "evaluation.bootstrap_samples" not in page  # the same in both
    for folder in (run, other):
        assert html.escape(json.loads((folder / "summary.json").read_text())["verdict"]) in page
    [link] = [a["href"] for t, a in Parsed(page).elements if t == "a" and (a.get("href") or "").endswith("report.html")]
    assert (target.parent / str(link)).resolve() == (run / "report.html").resolve()


def test_outputs_and_runs_that_cannot_work_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="given twice"):
        write_report([run, run.parent / "." / run.name])
    with pytest.raises(InputError, match="is a folder"):
        write_report([run], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_page(run, tmp_path):
    done = CliRunner().invoke(app, ["report", str(run), "--output", str(tmp_path / "deep" / "page.html")])
    assert done.exit_code == 0
    assert done.stdout.strip() == str(tmp_path / "deep" / "page.html")
    assert (tmp_path / "deep" / "page.html").is_file()


@pytest.mark.slow
def test_250_queries_and_four_policies_stay_under_8_mb(tmp_path):
    """Answers of 350 random words, three contrasts with two answers for each query; a fifth of the queries.

    Measured with all 250 queries: 7.3 MB. Words of a language repeat more, so real answers take less.
    """
    vocabulary = ["".join(random.Random(n).choices("etaoinshrdlu", k=2 + n % 8)) for n in range(3000)]

    def write(query, iteration, principle, positive):
        draw = random.Random(f"{query}{iteration}{principle}{positive}")
        return plainly(query, iteration, principle, positive) + " " + " ".join(draw.choices(vocabulary, k=340))

    page = write_report([make_run(tmp_path / "run", queries=50, iterations=3, write=write)]).read_text()
    data = len(re.findall(r'id="data">"([^"]*)"<', page)[0])
    assert data > 1_000_000
    assert len(page.encode()) + 4 * data < 8_000_000
