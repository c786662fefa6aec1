"""Reasoning, then answer: what is asked, what is kept and trained on, and what cannot be split."""

import json
from dataclasses import replace

import pytest

from sami.contrasts import read_contrasts
from sami.errors import InputError
from sami.generation import Completion
from sami.generation.reasoning import answer_alone, answer_of, without_thinking
from sami.loop.context import Run
from sami.models.loading import load_tokenizer
from sami.pipeline import Pipeline
from sami.prompts import PromptBuilder
from sami.recipe import ChainOfThought, Prompt, load_recipe
from tests.support import chat_templates as given
from tests.support.recipes import write_recipe
from tests.support.tiny import EOS, tiny_model

THOUGHT = ChainOfThought()


def written(tokenizer, text, finish="stop"):
    ids = tokenizer(text)["input_ids"]
    return Completion([*ids, EOS] if finish == "stop" else ids, text, finish)


# What is kept.


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Light scatters, so blue. Answer: The sky is blue.", "The sky is blue."),
        ("Light scatters.\n\nAnswer:\n\nThe sky is blue.", "The sky is blue."),
        ("Answer: Blue. Été 日本", "Blue. Été 日本"),
        ("Été 日本 Answer:\n \n1. Blue\n2. Red\n", "1. Blue\n2. Red\n"),
    ],
)
def test_the_answer_is_a_slice_of_the_generated_ids_from_its_first_token_on(plain_tokenizer, text, kept, finish):
    completion = written(plain_tokenizer, text, finish)
    answer = answer_of(completion, "Answer:", plain_tokenizer)
    assert answer.token_ids == completion.token_ids[-len(answer.token_ids) :]
    assert answer.text.lstrip() == kept  # a space stays where it is a part of the first word's token
    assert answer.finish_reason == finish
    assert (answer.token_ids[-1] == EOS) is (finish == "stop")
    # Its first token is not white space alone, and the one before does not belong to the answer.
    assert plain_tokenizer.decode(answer.token_ids[:1]).strip()
    whole = plain_tokenizer.decode(completion.token_ids[: -len(answer.token_ids)])
    assert whole.rstrip().endswith("Answer:")


@pytest.mark.parametrize(
    "text",
    [
        "The sky is blue.",
        "Light scatters. Answer:",
        "Light scatters. Answer:  \n\n ",
        "First I think about the Answer: then I write. Answer: Blue.",
        "Light. Answer: Blue.\nHuman: Why?\nReasoning: light. Answer: Blue.",
        "Light. answer: Blue.",
        "",
    ],
)
def test_a_response_without_exactly_one_marker_before_an_answer_cannot_be_split(plain_tokenizer, text):
    completion = written(plain_tokenizer, text)
    assert answer_of(completion, "Answer:", plain_tokenizer) == replace(completion, finish_reason="unsplit")


def test_a_token_that_holds_marker_and_answer_cannot_be_split(plain_tokenizer):
    """A slice of ids can neither keep nor leave such a token; white space in it may go."""
    tokens = plain_tokenizer("Answers should be short.")["input_ids"]
    pieces = [plain_tokenizer.decode([token]) for token in tokens]
    number = next(i for i, piece in enumerate(pieces) if i and len(piece.strip()) >= 3)
    marker = "".join(pieces[:number]) + pieces[number][:-1]  # ends inside a token
    completion = written(plain_tokenizer, "Answers should be short.")
    assert marker in completion.text
    assert answer_of(completion, marker, plain_tokenizer) == replace(completion, finish_reason="unsplit")
    whole = marker + pieces[number][-1]
    answer = answer_of(completion, whole, plain_tokenizer)
    assert answer.token_ids == completion.token_ids[number + 1 :]


# A thinking model.


@pytest.mark.parametrize(
    ("opened", "text", "answer", "reasoning"),
    [
        (False, "<think>\nLight scatters.\n</think>\n\nBlue.", "Blue.", "Light scatters."),
        (True, "Light scatters.\n</think>\n\nBlue.", "Blue.", "Light scatters."),
        (False, "Light scatters.</think>Blue.", "Blue.", "Light scatters."),
        (False, "Blue.", "Blue.", ""),
        (False, "<think>\n\n</think>\n\nBlue.", "Blue.", ""),
        (True, "Light scatters and", None, "Light scatters and"),
        (False, "<think>\nLight scatters and", None, "Light scatters and"),
        (False, "<think>One</think>Blue.</think>Red.", None, "One</think>Blue.</think>Red."),
    ],
)
def test_thinking_is_split_off_and_kept_as_text(opened, text, answer, reasoning):
    tokenizer = given.tokenizer_with(given.THINKS)
    found = without_thinking(written(tokenizer, text), ("<think>", "</think>"), tokenizer, opened=opened)
    assert (found.text, found.reasoning) == (answer or "", reasoning)
    assert found.finish_reason == ("unsplit" if answer is None else "stop")
    if answer is not None:
        assert found.token_ids == [*tokenizer(answer)["input_ids"], EOS]


def test_a_chain_of_thought_of_a_thinking_model_comes_after_its_thinking():
    tokenizer = given.tokenizer_with(given.THINKS)
    prompts = PromptBuilder(tokenizer, Prompt(), THOUGHT)
    completion = written(tokenizer, "<think>Hm.</think>Light scatters. Answer: Blue.")
    found = answer_alone(completion, prompts.generation_prompt("Why?", [], ""), prompts, THOUGHT)
    assert (found.text.strip(), found.reasoning) == ("Blue.", "Hm.\n\nLight scatters.")


# The recipe.


def recipe(tmp_path, *overrides):
    (tmp_path / "r.yaml").write_text("model: m\nqueries: {path: q}\nprinciples: p.yaml\n")
    return load_recipe(tmp_path / "r.yaml", overrides).generation


def test_true_takes_the_defaults_and_false_asks_for_no_reasoning(tmp_path):
    assert recipe(tmp_path).chain_of_thought is None
    assert recipe(tmp_path, "generation.chain_of_thought=false").chain_of_thought is None
    assert recipe(tmp_path, "generation.chain_of_thought=true").chain_of_thought == ChainOfThought()
    changed = recipe(tmp_path, "generation.chain_of_thought=true", "generation.chain_of_thought.marker=Reply>")
    assert changed.chain_of_thought == ChainOfThought(marker="Reply>")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["generation.chain_of_thought.marker='  '"], "marker is white space"),
        (["generation.chain_of_thought.instruction=Think."], "instruction does not ask for the marker 'Answer:'"),
        (["generation.chain_of_thought.mark=x"], "did you mean 'marker'?"),
        (
            ["generation.chain_of_thought=true", "prompt.response_prefix=The post"],
            "both the prefix and reasoning",
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, overrides, part):
    with pytest.raises(InputError) as caught:
        recipe(tmp_path, *overrides)
    assert part in str(caught.value)


# A run.


class Thinker:
    """An engine that reasons and answers, except that every fifth response never comes to an answer."""

    def __init__(self, tokenizer, before_answer):
        self.tokenizer, self.before_answer = tokenizer, before_answer

    def generate(self, prompts, settings, on_progress=None):
        responses = []
        for number, prompt in enumerate(prompts):
            topic = self.tokenizer.decode(prompt).split("people like ")[1].split("?")[0]
            answer = "" if number % 5 == 4 else f"{self.before_answer}They like {topic}, {number}."
            responses.append(written(self.tokenizer, f"I reason about {topic}.{answer}"))
        return responses


@pytest.fixture(scope="module")
def thinking_folder(tmp_path_factory):
    tokenizer = given.tokenizer_with(given.OPENS_THINKING)
    folder = tmp_path_factory.mktemp("thinking")
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["chain of thought", "thinking model"])
def test_a_run_trains_and_evaluates_answers_alone_and_counts_what_cannot_be_split(
    tmp_path, model_folder, thinking_folder, kind, monkeypatch, capsys
):
    asked = kind == "chain of thought"
    changes = {"training__iterations": 1, "training__steps": 2, "generation__surplus": 1.0}
    changes |= {"generation__chain_of_thought": True} if asked else {}
    file = write_recipe(tmp_path, model_folder("llama", True) if asked else thinking_folder, **changes)
    before_answer = " Answer: " if asked else "\n</think>\n\n"
    monkeypatch.setattr(Run, "engine", lambda self, iteration: Thinker(self.tokenizer, before_answer))
    pipeline = Pipeline(load_recipe(file), tmp_path / "run")
    summary = pipeline.run()

    # 16 contrasts of two responses each: every fifth response is response 4, 9, 14, … of 32.
    spoiled = len({number // 2 for number in range(4, 32, 5)})
    assert summary["contrasts"]["iteration-1"]["dropped"] == {"unsplit": spoiled}
    assert summary["contrasts"]["iteration-1"]["kept"] == 16 - spoiled
    assert f"unsplit {spoiled}" in capsys.readouterr().err
    tokenizer = load_tokenizer(load_recipe(file).model)
    plain = PromptBuilder(tokenizer, Prompt())
    for contrast in read_contrasts(tmp_path / "run" / "iteration-1" / "contrasts.parquet"):
        assert all(text.startswith("I reason about ") for text in contrast.reasoning)
        for ids, prompt, text, constitution in zip(
            contrast.response_ids, contrast.prompt_ids, contrast.responses, contrast.constitutions, strict=True
        ):
            assert text.lstrip().startswith("They like ")
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
            assert ids[-1] == EOS
            assert prompt == plain.training_prompt(contrast.query, [constitution], constitution)
            assert "<think>" not in tokenizer.decode(prompt)

    # An evaluation generates in the same way. A chain of thought that cannot be split is kept whole, and one that a
    # thinking model never ended is no answer.
    held_out = read_contrasts(tmp_path / "run" / "evaluation" / "responses" / "base.parquet")
    responses = [text for contrast in held_out for text in contrast.responses]
    whole = ["I reason about" in text for text in responses]
    assert whole == [asked and n % 5 == 4 for n in range(len(responses))]
    reasons = [reason for contrast in held_out for reason in contrast.finish_reasons]
    assert reasons == ["unsplit" if n % 5 == 4 else "stop" for n in range(len(responses))]
    unfinished = 100 * reasons.count("unsplit") / len(reasons)
    assert summary["policies"][0]["health"]["unfinished"] == pytest.approx(unfinished)
    unsplit = len({number // 2 for number in range(4, len(responses), 5)})
    assert summary["unsplit"] == {"base": unsplit, "iteration-1": unsplit}
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unsplit"] == summary["unsplit"]


@pytest.mark.parametrize("writer", ["base", "another model of its vocabulary"])
def test_a_model_that_never_answers_stops_the_run_with_the_count_and_an_example(tmp_path, model_folder, writer):
    changes = {"generation__chain_of_thought": True, "training__iterations": 1, "training__steps": 2}
    if writer != "base":
        changes["generation__first_model"] = str(model_folder("mistral", True))
    pipeline = Pipeline(load_recipe(write_recipe(tmp_path, model_folder("llama", True), **changes)), tmp_path / "run")
    with pytest.raises(InputError, match=r"Only 0 of 9 contrasts passed the filters \(unsplit 9\)") as caught:
        pipeline.generate(1)
    assert "An example of unsplit: ['" in str(caught.value)
    assert "chain_of_thought.instruction more plainly" in str(caught.value)
    assert not (tmp_path / "run" / "iteration-1" / "contrasts.parquet").exists()
