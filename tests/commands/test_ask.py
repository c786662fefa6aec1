"""`sami try`: what is asked, what is answered, and whose constitution an answer fits."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from sami.commands.ask import Trial, conversation_in, of_principles, of_text
from sami.commands.ask_session import converse, fit_sentence, read_choice, show
from sami.console import visible
from sami.errors import InputError
from sami.principles import Principle
from sami.queries import Conversation, Turn
from tests.support.command_line import process, refused

PRINCIPLES = [
    Principle(id="brief", definition="Be brief.", antithesis="Be long."),
    Principle(id="kind", definition="Be kind.", antithesis="Be stern."),
]
QUERY = "Why do people like rain?"


@pytest.fixture(scope="module")
def trial(finished_run) -> Trial:
    return Trial(finished_run)


def plain(width: int = 100) -> Console:
    return Console(file=StringIO(), width=width, force_terminal=False)


def typed(*lines: str) -> Callable[[str], str]:
    """A person who types these lines and then ends the input."""
    given = iter(lines)

    def ask(prompt: str) -> str:
        for line in given:
            return line
        raise EOFError

    return ask


# Choosing a constitution.


def test_a_constitution_of_principles_is_told_from_the_one_turned_round():
    choice = of_principles(PRINCIPLES, ["brief"], ["kind"])
    assert choice.constitution.text == "1. Be brief.\n2. Be stern."
    assert choice.opposite.text == "1. Be long.\n2. Be kind."
    assert choice.opposite.principles == ("Be long.", "Be kind.")


def test_own_words_are_told_from_the_bare_query_or_from_other_words():
    assert of_text(" Sing. ").constitution.principles == ("Sing.",)
    assert of_text("Sing.").opposite.principles == ()
    assert of_text("Sing.", "Speak.").opposite.text == "Speak."


def test_a_principle_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'brief'"):
        of_principles(PRINCIPLES, ["breif"])
    with pytest.raises(InputError, match="brief, kind"):
        of_principles(PRINCIPLES, ["xyz"])
    with pytest.raises(InputError, match="brief' twice"):
        of_principles(PRINCIPLES, ["brief"], ["brief"])


@pytest.mark.parametrize(
    ("line", "constitution", "opposite"),
    [
        ("2", "Be kind.", "Be stern."),
        ("-brief", "Be long.", "Be brief."),
        ("1 -2", "1. Be brief.\n2. Be stern.", "1. Be long.\n2. Be kind."),
        ("Be brief and kind", "Be brief and kind", ""),
    ],
)
def test_what_is_typed_is_principles_or_a_sentence(line, constitution, opposite):
    choice = read_choice(line, PRINCIPLES)
    assert (choice.constitution.text, choice.opposite.text) == (constitution, opposite)


@pytest.mark.parametrize("line", ["breif", "3", "-"])
def test_one_word_that_is_no_principle_is_not_taken_for_a_constitution(line):
    with pytest.raises(InputError, match="There is no principle"):
        read_choice(line, PRINCIPLES)


# Asking.


def test_the_fit_is_the_difference_of_log_probs_per_token(trial):
    choice = trial.principles(["brief"])
    told = trial.ask(QUERY, choice)
    assert [answer.policy for answer in told.answers] == ["base", "iteration-2"]
    asked = trial._prompt(QUERY, choice.constitution, train=False)
    for answer in told.answers:
        completion = trial._answer(answer.policy, asked, lambda text: None)
        ids = completion.token_ids
        assert (answer.text, answer.tokens) == (completion.text, len(ids))
        for scorer, model in trial.policies.items():
            expected = []
            for wording in (choice.constitution, choice.opposite):
                prompt = trial.run.prompts.training_prompt(QUERY, list(wording.principles), wording.text)
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                expected.append(logits[range(len(ids)), ids].mean().item())
            assert answer.fit[scorer] == pytest.approx(expected[0] - expected[1], abs=1e-4)


def test_the_opposite_turns_the_sign_of_a_fit(trial):
    """The same answer scored for the two constitutions in turn."""
    choice = trial.principles(["loud"])
    turned = trial.principles([], ["loud"])
    prompt = trial._prompt(QUERY, choice.constitution, train=False)
    answers = [trial._answer(name, prompt, lambda text: None) for name in trial.policies]
    there, back = trial._fits(QUERY, choice, answers), trial._fits(QUERY, turned, answers)
    for name in trial.policies:
        assert there[name] == pytest.approx([-fit for fit in back[name]], abs=1e-6)
        assert abs(there[name][0]) > 1e-4


def test_answers_grow_token_by_token_and_end_as_they_are_told(trial):
    seen = {"base": [], "iteration-2": []}
    told = trial.ask(QUERY, trial.principles(["kind"]), lambda policy, text: seen[policy].append(text))
    for answer in told.answers:
        assert len(seen[answer.policy]) == answer.tokens
        assert seen[answer.policy][-1] == answer.text
        assert len(seen[answer.policy][0]) < len(answer.text) or answer.tokens == 1


def test_an_earlier_iteration_and_a_longer_answer_can_be_asked_for(finished_run):
    trial = Trial(finished_run, iteration=1, max_new_tokens=9)
    told = trial.ask(QUERY, trial.principles(["kind"]))
    assert trial.policy == "iteration-1"
    assert max(answer.tokens for answer in told.answers) in range(7, 10)


def test_nothing_to_answer_is_refused(trial):
    choice = trial.principles(["kind"])
    with pytest.raises(InputError, match="query is empty"):
        trial.ask("  ", choice)
    with pytest.raises(InputError, match="1024 tokens"):
        trial.ask("rain " * 2000, choice)


TALK = Conversation((Turn("user", "Do you like rain?"), Turn("assistant", "I do.")), QUERY, "You are a farmer.")


def test_a_conversation_is_answered_and_scored_after_all_its_turns(trial):
    choice = trial.principles(["brief"])
    told = trial.ask(TALK, choice)
    assert told.query == str(TALK)
    prompt = trial.run.prompts.generation_prompt(TALK, ["Answer in a few words."], "Answer in a few words.")
    assert "I do.<eos>" in trial.run.tokenizer.decode(prompt)
    for answer in told.answers:
        completion = trial._answer(answer.policy, prompt, lambda text: None)
        assert answer.text == completion.text
        assert trial._fits(TALK, choice, [completion] * 2)["base"][0] == pytest.approx(answer.fit["base"], abs=1e-5)
        assert trial._fits(QUERY, choice, [completion] * 2)["base"][0] != pytest.approx(answer.fit["base"], abs=1e-3)


@pytest.mark.parametrize("wrap", [lambda messages: messages, lambda messages: {"messages": messages}])
def test_the_messages_of_a_file_are_asked_or_continued(tmp_path, wrap):
    file = tmp_path / "talk.json"
    file.write_text(json.dumps(wrap([*TALK.messages, {"role": "assistant", "content": "It falls."}])))
    assert conversation_in(file) == TALK
    assert conversation_in(file, "Why?") == TALK.followed_by("It falls.", "Why?")


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "is not a conversation"), ('["Hi"]', "not a message"), ("[", "not valid JSON"), (None, "cannot be read")],
)
def test_a_file_without_a_conversation_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "talk.json").write_text(content)
    with pytest.raises(InputError, match=words):
        conversation_in(tmp_path / "talk.json")


# In a terminal.


def test_a_session_continues_a_conversation_with_the_trained_models_answers(trial, monkeypatch):
    told = []
    ask = trial.ask

    def recorded(query, choice):
        told.append((query, ask(query, choice)))
        return told[-1][1]

    monkeypatch.setattr(trial, "ask", recorded)
    console = plain()
    converse(trial, console, typed("brief", "+ Why?", QUERY, "+ And snow?", "+And hail?", "Tea?", "", "kind", "+ Why?"))
    answers = [one.answers[1].text for _, one in told]
    second = Conversation((Turn("user", QUERY), Turn("assistant", answers[0])), "And snow?")
    assert [query for query, _ in told] == [QUERY, second, second.followed_by(answers[1], "And hail?"), "Tea?"]
    shown = console.file.getvalue()
    assert shown.count("no conversation to continue yet") == 2
    assert f"query        User: {QUERY}" in shown
    assert "User: And hail?" in shown


def test_a_session_goes_through_constitutions_and_queries(trial):
    console = plain()
    converse(trial, console, typed("", "breif", "brief", QUERY, "", "Talk like a pirate.", "What is tea?"))
    shown = console.file.getvalue()
    assert "Did you mean 'brief'" in shown
    assert shown.count("╭─ base") == 2
    assert "opposite     Answer at great length." in shown
    assert "opposite     none: the bare query" in shown
    assert shown.count("scored by iteration-2") == 2
    assert "(held out)" in shown


def test_an_answer_cannot_drive_the_terminal(trial, monkeypatch):
    hostile = "[red]ready[/red]\x1b[2J\x07\u202e"
    choice = trial.principles(["kind"])
    told = trial.ask(QUERY, choice)
    answers = tuple(replace(answer, text=hostile) for answer in told.answers)
    console = plain()
    monkeypatch.setattr(trial, "ask", lambda query, choice: replace(told, query=query, answers=answers))
    show(trial, "\x1b]0;title\x07", choice, console)
    shown = console.file.getvalue()
    assert "[red]ready[/red]\\x1b[2J\\x07\\u202e" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_reasoning_is_shown_apart_from_the_answer_and_not_scored(trial, monkeypatch):
    hostile = "I wonder [red]\x1b[2J"
    choice = trial.principles(["kind"])
    plainly = trial.ask(QUERY, choice)
    answer = trial._answer

    def thinking(policy, *arguments):
        written = answer(policy, *arguments)
        return replace(written, reasoning=hostile) if policy == "base" else written

    monkeypatch.setattr(trial, "_answer", thinking)
    for live in (False, True):
        console = Console(file=StringIO(), width=100, force_terminal=live)
        told = show(trial, QUERY, choice, console)
        text = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # type: ignore[attr-defined]
        assert "reasoning, not scored:" in text
        assert "I wonder [red]\\x1b[2J" in text
    assert [one["reasoning"] for one in told.as_json()["answers"]] == [hostile, ""]
    assert [(one.text, one.tokens, one.fit) for one in told.answers] == [
        (one.text, one.tokens, one.fit) for one in plainly.answers
    ]


def test_text_is_shown_as_it_is_otherwise():
    assert visible("Naïve 日本語 👩‍🚒\nnext") == "Naïve 日本語 👩‍🚒\nnext"
    assert visible("\ud800 \u2028") == "\\ud800 \\u2028"


def test_the_sentence_says_whose_answer_fits_better(trial):
    told = trial.ask(QUERY, trial.principles(["kind"]))

    def with_fits(*fits):
        answers = (replace(one, fit={"base": fit}) for one, fit in zip(told.answers, fits, strict=True))
        return replace(told, answers=tuple(answers))

    assert "fits the constitution better than the answer of base: +0.500 against -0.100" in fit_sentence(
        with_fits(-0.1, 0.5)
    )
    assert "no better" in fit_sentence(with_fits(0.5, 0.1))


# The command.


def test_the_command_end_to_end(finished_run):
    done = process("try", finished_run, input=f"brief\n{QUERY}\n")
    assert done.returncode == 0, done.stderr
    assert "constitution Answer in a few words." in done.stdout
    assert "the answer of iteration-2" in done.stdout


def test_one_question_as_json(sami, finished_run):
    code, out, _ = sami("try", finished_run, QUERY, "--antithesis", "brief", "--max-new-tokens", 3, "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["constitution"], told["opposite"]) == ("Answer at great length.", "Answer in a few words.")
    assert [answer["tokens"] for answer in told["answers"]] == [3, 3]
    assert set(told["answers"][1]["fit"]) == {"base", "iteration-2"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["q"], "Choose a constitution"),
        (["q", "--principle", "brief", "--constitution", "x"], "not both"),
        (["q", "--principle", "brief", "--opposite", "x"], "--opposite belongs to --constitution"),
        (["--json"], "Give a query"),
        (["--conversation", "talk.json"], "Choose a constitution"),
        (["q", "--principle", "breif"], "Did you mean 'brief'"),
        (["q", "--principle", "brief", "--iteration", "7"], "has the models of 1, 2"),
    ],
)
def test_impossible_requests_are_refused(sami, finished_run, arguments, words):
    refused(sami("try", finished_run, *arguments), words)


def test_weights_that_changed_are_refused(finished_run, tmp_path):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    metrics, config = folder / "iteration-2" / "metrics.jsonl", folder / "iteration-2" / "model" / "config.json"
    metrics.write_text(metrics.read_text() + "{}\n")  # not read by this command
    Trial(folder)
    config.write_text(config.read_text() + "\n")
    with pytest.raises(InputError, match=r"iteration-2/model changed after the step train-2"):
        Trial(folder)


def test_a_folder_without_a_run_or_a_model_is_refused(finished_run, tmp_path):
    with pytest.raises(InputError, match=r"recipe\.yaml is missing"):
        Trial(tmp_path)
    for name in ("recipe.yaml", "principles.yaml"):
        shutil.copy(finished_run / name, tmp_path / name)
    with pytest.raises(InputError, match="no trained model yet"):
        Trial(tmp_path)
