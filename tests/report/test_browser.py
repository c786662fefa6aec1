"""The page in headless Chromium: no errors or requests, filters, links, keys, themes and blind judging."""

import json
import shutil
from dataclasses import replace

import pytest

from sami.contrasts import read_contrasts, write_contrasts
from sami.evaluation.ask import ask
from sami.evaluation.judges.human import Human
from sami.evaluation.pairs import from_contrasts, pair_up
from sami.evaluation.verdicts import read_verdicts
from sami.evaluation.win_rate import win_rates
from sami.recipe import HumanJudge
from sami.report import write_report
from tests.support.hostile import HOSTILE
from tests.support.report_runs import make_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")


PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=[*quiet, "--disable-sync", "--no-first-run"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def run(report_run):
    write_report([report_run])
    return report_run


def open_page(browser, file, anchor="", **context):
    """A page in its own context, whose errors and requests are collected in `page.faults`."""
    page = browser.new_context(**context).new_page()
    page.faults = []
    page.on("console", lambda message: page.faults.append(message.text))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith(("file:", "data:", "blob:")) or page.faults.append(request.url),
    )
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{file.as_uri()}{anchor}")
    return page


@pytest.fixture
def page(browser, run):
    opened = open_page(browser, run / "report.html")
    opened.wait_for_selector("#items .item")
    yield opened
    assert opened.faults == []
    opened.context.close()


def shown(page):
    found = page.eval_on_selector_all("#items .item", "items => items.map(i => i.dataset.item)")
    return found


def count(page):
    return page.inner_text("#count")


def settle(page, expected):
    page.wait_for_function("text => document.getElementById('count').textContent === text", arg=expected)


def test_the_first_screen_shows_the_verdict(page, run):
    verdict = json.loads((run / "summary.json").read_text())["verdict"]
    assert page.inner_text(".sentence") == verdict
    assert page.locator(".tile").count() == 5
    bottom = page.locator(".tiles").bounding_box()
    assert bottom is not None
    assert bottom["y"] + bottom["height"] < 720  # within the default window


def test_filters_and_search_choose_items(page, run):
    assert count(page) == "20 of 36 shown"
    page.click("#more")
    assert count(page) == "36 of 36 shown"
    page.select_option("#by-principle", "=pirate")
    assert count(page) == "12 of 12 shown, 36 in all"
    assert {name.split("-")[1] for name in shown(page)} == {"pirate"}
    page.select_option("#by-principle", "held-out")
    assert {name.split("-")[1] for name in shown(page)} == {"calm"}
    page.select_option("#by-principle", "")

    scores = {n: json.loads((run / f"evaluation/scores/{n}.json").read_text()) for n in ("base", "iteration-2")}
    before, after = (
        {(v["contrast"], v["constitution"]): v["passed"] for v in scores[n]["verdicts"]}
        for n in ("base", "iteration-2")
    )
    lost = {contrast for (contrast, number), passed in before.items() if passed and not after[contrast, number]}
    assert lost
    page.select_option("#by-verdict", "lost")
    assert set(shown(page)) == lost
    page.select_option("#by-verdict", "")

    page.select_option("#by-flag", "unfinished")
    assert set(shown(page)) == {f"q0-{name}" for name in ("brief", "pirate", "calm")}
    page.select_option("#by-flag", "")

    before, after = (
        {c.id: [len(r.split()) for r in c.responses] for c in read_contrasts(run / f"evaluation/responses/{n}.parquet")}
        for n in ("base", "iteration-2")
    )
    page.select_option("#by-order", "drift")
    drifts = [max(abs(a - b) for a, b in zip(before[name], after[name], strict=True)) for name in shown(page)]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[0] > drifts[-1]

    page.fill("#search", "QUERY 7")
    settle(page, "3 of 3 shown, 36 in all")
    assert {name.split("-")[0] for name in shown(page)} == {"q7"}
    assert page.locator("mark").first.inner_text() == "Query 7"
    page.fill("#search", "no such words")
    settle(page, "0 of 0 shown, 36 in all")
    page.click("#clear")
    settle(page, "20 of 36 shown")


def test_policies_can_be_left_out(page):
    first = page.locator("#items .item").first
    assert first.locator(".answer").count() == 6
    page.uncheck("#by-policy label:has-text('iteration-1') input")
    assert first.locator(".answer").count() == 4
    assert "iteration-1" not in first.inner_text().replace("base", "")


def test_a_link_leads_to_one_item(browser, page, run):
    link = page.locator("#items .item .anchor").first.get_attribute("href")
    assert link == "#item-q0-brief"
    fresh = open_page(browser, run / "report.html", "#item-q11-calm")
    fresh.wait_for_selector(".item.linked")
    assert fresh.evaluate("document.activeElement.dataset.item") == "q11-calm"
    assert fresh.locator(".item.linked").bounding_box()["y"] < 200
    # The page is already open, and filters hide the item of the next link.
    fresh.fill("#search", "query 7")
    settle(fresh, "3 of 3 shown, 36 in all")
    fresh.evaluate("location.hash = '#item-q3-pirate'")
    fresh.wait_for_function("() => document.activeElement.dataset.item === 'q3-pirate'")
    assert fresh.input_value("#search") == ""
    fresh.evaluate("location.hash = '#item-%E0%A4%A'")  # not the address of an item
    assert fresh.faults == []
    fresh.context.close()


def test_keys_move_and_search(page):
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.dataset.item") == "q0-pirate"
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.dataset.item") == "q0-brief"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("j/k")  # letters, while something is typed
    assert page.input_value("#search") == "j/k"


def test_everything_is_reached_by_tab(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"SUMMARY", "search", "by-principle", "by-verdict", "by-flag", "by-order", "clear"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(browser, run, scheme):
    page = open_page(browser, run / "report.html", color_scheme=scheme)
    page.wait_for_selector("#items .item")
    ratios = page.evaluate(CONTRASTS)
    assert len(ratios) >= 8
    assert min(ratios.values()) >= 4.5, ratios
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 27)") == (scheme == "dark")
    page.context.close()


# The WCAG contrast ratio of each kind of text with its background.
CONTRASTS = """() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (color !== "rgba(0, 0, 0, 0)" && color !== "transparent") return color;
    }
  };
  const found = {};
  for (const kind of ["h1", ".sentence", ".source", ".note", ".reading", "nav a", "figcaption", "summary", "td",
                      "thead th", ".about", ".said", ".marks .pass", ".marks .fail", ".marks li", "button.quiet",
                      "td small", "svg.plot text"]) {
    const node = document.querySelector(kind);
    if (!node) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(node.matches("svg *") ? style.fill : style.color), light(ground(node))];
    found[kind] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }
  return found;
}"""


def test_nothing_is_wider_than_a_phone(browser, run):
    page = open_page(browser, run / "report.html", viewport=PHONE)
    page.wait_for_selector("#items .item")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    begin_judging(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#judging").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    page.context.close()


def test_print_has_the_recipe_and_no_controls(page):
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.printed pre").first.is_visible()
    assert not page.locator("form.filters").is_visible()
    assert not page.locator(".top nav").is_visible()


def test_without_javascript_the_findings_are_there(browser, run):
    page = open_page(browser, run / "report.html", java_script_enabled=False)
    assert page.locator(".tile").count() == 5
    assert page.locator("svg.plot").count() == 7
    assert page.locator("#no-browser").is_visible()
    page.context.close()


# Blind judging.


def begin_judging(page):
    page.click("[data-open-judging]")
    page.click("#judging-begin")


def judge(page, keys):
    """Press keys one by one; returns what was on the screen before each."""
    seen = []
    for key in keys:
        seen.append({part: page.inner_text(f"#judging-{part}") for part in ("query", "constitution", "a", "b")})
        page.keyboard.press(key)
    return seen


def exported(page, target):
    with page.expect_download() as download:
        page.click("#judging-export")
    download.value.save_as(target)
    return target


def policies_of(run):
    ids = {f"Query {n}?": f"q{n}" for n in range(12)}
    return {
        name: from_contrasts(name, read_contrasts(run / f"evaluation/responses/{name}.parquet"), ids, ["calm"])
        for name in ("base", "iteration-1", "iteration-2")
    }


def test_blind_verdicts_read_back_as_judge_human(page, run, tmp_path):
    begin_judging(page)
    dialog = page.inner_text("#judging-run")
    assert "iteration" not in dialog
    assert "base" not in dialog
    seen = judge(page, "abtsab")
    verdicts = read_verdicts(exported(page, tmp_path / "human.jsonl"))

    policies = policies_of(run)
    texts = {
        name: {item.constitution_id: response.text for item, response in policy.responses.items()}
        for name, policy in policies.items()
    }
    said = [v for v in verdicts if v.raw != "identical responses"]
    assert [v.raw for v in said] == ["A", "B", "tie", "A", "B"]  # the skipped one is not in the file
    for verdict, screen in zip(said, [*seen[:3], *seen[4:]], strict=True):
        assert (verdict.judge, verdict.candidate, verdict.baseline) == ("human", "iteration-2", "base")
        candidate, baseline = (texts[name][verdict.constitution_id] for name in ("iteration-2", "base"))
        screens = {"candidate_first": (candidate, baseline), "baseline_first": (baseline, candidate)}
        assert (screen["a"], screen["b"]) == screens[verdict.order]
        preferred = {"A": screen["a"], "B": screen["b"], "tie": None}[verdict.raw]
        assert verdict.score == (0.5 if preferred is None else float(preferred == candidate))
        assert verdict.candidate_chars == len(candidate)
    assert win_rates(verdicts)[0]["judge"] == "human"  # what `sami winrate` prints

    pairs = pair_up(policies["iteration-2"], policies["base"])
    human = Human(HumanJudge(kind="human", name="human", path=str(tmp_path / "human.jsonl")))
    found = ask(human, pairs, tmp_path / "verdicts.jsonl")  # what `sami judge` does
    assert {(v.constitution_id, v.order, v.score) for v in found} == {
        (v.constitution_id, v.order, v.score) for v in verdicts
    }


def test_order_and_sides_are_mixed_and_identical_pairs_are_ties(page, run, tmp_path):
    begin_judging(page)
    total = int(page.inner_text("#judging-count").split()[2].strip(";"))
    seen = judge(page, "a" * total)
    page.wait_for_selector("#judging-done:not([hidden])")
    assert "All pairs are judged" in page.inner_text("#judging-done")
    queries = [one["query"] for one in seen]
    assert queries != sorted(queries, key=lambda q: int(q.split()[1].strip("?")))
    verdicts = read_verdicts(exported(page, tmp_path / "all.jsonl"))
    first = sum(v.order == "candidate_first" for v in verdicts)
    assert 12 < first < 60  # of 72 fair draws
    policies = policies_of(run)
    same = {
        item.constitution_id
        for item, response in policies["base"].responses.items()
        if response.text == policies["iteration-2"].responses[item].text
    }
    ties = {v.constitution_id for v in verdicts if v.raw == "identical responses"}
    assert ties <= same
    assert len(verdicts) - len(ties) == total == 72 - len(same)


def test_progress_is_kept_in_the_browser(page, run):
    begin_judging(page)
    judge(page, "ab")
    waiting = page.inner_text("#judging-query"), page.inner_text("#judging-a")
    page.reload()
    page.wait_for_selector("#items .item")
    page.click("[data-open-judging]")
    assert page.inner_text("#judging-begin") == "Resume"
    page.click("#judging-begin")
    assert page.inner_text("#judging-count").startswith("2 of ")
    assert (page.inner_text("#judging-query"), page.inner_text("#judging-a")) == waiting
    page.keyboard.press("u")
    assert page.inner_text("#judging-count").startswith("1 of ")
    page.click("#judging-reset")
    assert page.inner_text("#judging-begin") == "Begin"
    page.keyboard.press("Escape")
    assert not page.locator("#judging").is_visible()


# Hostile output.


def test_hostile_answers_run_nothing_and_show_as_text(browser, hostile_run, tmp_path):
    run = shutil.copytree(hostile_run, tmp_path / "run")
    responses = run / "evaluation" / "responses" / "base.parquet"
    contrasts = read_contrasts(responses)
    thoughts = [[HOSTILE[n % len(HOSTILE)], ""] for n in range(len(contrasts))]
    write_contrasts(responses, (replace(c, reasoning=own) for c, own in zip(contrasts, thoughts, strict=True)))
    summary = json.loads((run / "summary.json").read_text())
    summary["verdict"] = HOSTILE[1] + HOSTILE[2]
    (run / "summary.json").write_text(json.dumps(summary))
    page = open_page(browser, write_report([run]))
    page.wait_for_selector("#items .item")
    page.click("#more")
    assert page.evaluate("window.hacked") is None
    assert page.inner_text(".sentence") == HOSTILE[1] + HOSTILE[2]
    for number, hostile in enumerate(HOSTILE[:6]):
        text = page.locator(f"[data-item='q{number}-brief'] .answer .said").first.text_content()
        assert text == f"{hostile} 0"
    [thought] = page.locator("[data-item='q0-brief'] .answer details.reasoning").all()
    assert thought.locator("summary").text_content() == "Reasoning (not trained on, checked, or judged)"
    assert thought.locator(".thought").text_content() == HOSTILE[0]
    assert page.locator("[data-item='q6-brief'] .unseen").first.text_content() == "U+0000"
    assert page.locator("[data-item='q7-brief'] .unseen").first.text_content() == "U+202E"
    assert page.locator("#items img, #items svg, #items script, #items style, #items a:not(.anchor)").count() == 0
    long = page.locator("[data-item='q9-brief'] .answer").first
    assert len(long.locator(".said").text_content() or "") == 3000
    long.locator("button").click()
    assert len(long.locator(".said").text_content() or "") == 100_002
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    begin_judging(page)
    judge(page, "absu")
    assert page.evaluate("window.hacked") is None
    assert page.faults == []
    page.context.close()


def test_comparisons_open_without_error(browser, run, tmp_path):
    other = make_run(tmp_path / "second", iterations=1)
    page = open_page(browser, write_report([run, other], tmp_path / "both.html"), viewport=PHONE)
    assert page.locator("svg.plot").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.faults == []
    page.context.close()
