"""Reasoning, then answer: what is asked, what is kept and trained on, and what cannot be split."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from sami.errors import InputError
from sami.generation import Completion, SamplingSettings
from sami.generation.chain_of_thought import answer_of
from sami.loop.context import Run
from sami.prompts import PLAIN_STOP, PromptBuilder
from sami.recipe import ChainOfThought, Generation, Prompt, load_recipe
from tests.support.recipes import write_recipe
from tests.support.tiny import EOS

Folder = Callable[[str, bool], Path]
THOUGHT = ChainOfThought()


def written(tokenizer: PreTrainedTokenizerFast, text: str, finish: str = "stop") -> Completion:
    ids = tokenizer(text)["input_ids"]
    return Completion([*ids, EOS] if finish == "stop" else ids, text, finish)  # type: ignore[arg-type]


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
def test_the_answer_is_a_slice_of_the_generated_ids_from_its_first_token_on(
    plain_tokenizer: PreTrainedTokenizerFast, text: str, kept: str, finish: str
) -> None:
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
def test_a_response_without_exactly_one_marker_before_an_answer_cannot_be_split(
    plain_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    completion = written(plain_tokenizer, text)
    assert answer_of(completion, "Answer:", plain_tokenizer) == replace(completion, finish_reason="unsplit")


def test_a_token_that_holds_marker_and_answer_cannot_be_split(plain_tokenizer: PreTrainedTokenizerFast) -> None:
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


# What is asked.


def prompts(tokenizer: PreTrainedTokenizerFast, thought: ChainOfThought | None = THOUGHT, **settings: Any) -> list[str]:
    """The prompt to generate from and the one to train with, as text."""
    builder = PromptBuilder(tokenizer, Prompt(**settings), thought)
    asked = ("Why is the sky blue?", ["Be brief."], "Be brief.")
    return [tokenizer.decode(make(*asked)) for make in (builder.generation_prompt, builder.training_prompt)]


@pytest.mark.parametrize("chat", [True, False])
def test_reasoning_is_asked_for_when_generating_and_not_when_training(
    chat_tokenizer: PreTrainedTokenizerFast, plain_tokenizer: PreTrainedTokenizerFast, chat: bool
) -> None:
    tokenizer = chat_tokenizer if chat else plain_tokenizer
    generation, training = prompts(tokenizer)
    assert THOUGHT.text in generation
    assert '"Answer:"' in THOUGHT.text
    without = prompts(tokenizer, None)
    assert training == without[1]
    if chat:
        assert generation == without[0].replace("Be brief.", f"Be brief.\n\n{THOUGHT.text}")
    else:  # the worked example reasons as well
        assert generation.count("Answer:") == 2
        assert "fewer than 30. Answer: February has the fewest days" in generation


def test_instruction_and_marker_are_the_recipes(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    thought = ChainOfThought(instruction="Plan, then write {marker}", marker="Reply>")
    generation, _ = prompts(plain_tokenizer, thought)
    assert "\n\nPlan, then write Reply>\n\n" in generation
    assert "fewer than 30. Reply> February" in generation


def test_a_template_of_ones_own_shows_the_instruction_or_is_refused(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    generation, training = prompts(plain_tokenizer, generation_template="{{ query }}|{{ reasoning }}|{{ marker }}")
    assert generation == f"Why is the sky blue?|{THOUGHT.text}|Answer:"
    assert training == "Why is the sky blue?||"
    with pytest.raises(InputError, match="generation_template does not ask for it"):
        prompts(plain_tokenizer, generation_template="{{ query }}")
    assert prompts(plain_tokenizer, None, generation_template="{{ query }}")[0] == "Why is the sky blue?"


# The recipe.


def recipe(tmp_path: Path, *overrides: str) -> Generation:
    (tmp_path / "r.yaml").write_text("model: m\nqueries: {path: q}\nprinciples: p.yaml\n")
    return load_recipe(tmp_path / "r.yaml", overrides).generation


def test_true_takes_the_defaults_and_false_asks_for_no_reasoning(tmp_path: Path) -> None:
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
        (["generation.chain_of_thought=true", "prompt.response_prefix=The post"], "cannot start from the prefix"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, overrides: Sequence[str], part: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe(tmp_path, *overrides)
    assert part in str(caught.value)


# A run.


class Thinker:
    """An engine that reasons and answers, except that every fifth response says nothing of an answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, on_progress: Any = None
    ) -> list[Completion]:
        responses = []
        for number, prompt in enumerate(prompts):
            asked = self.tokenizer.decode(prompt)
            if THOUGHT.text not in asked:
                responses.append(written(self.tokenizer, f"Plainly {number}."))
                continue
            topic = asked.split("people like ")[1].split("?")[0]
            answer = "" if number % 5 == 4 else f" Answer: They like {topic}, {number}."
            responses.append(written(self.tokenizer, f"I reason about {topic}.{answer}"))
        return responses


def test_a_run_trains_and_evaluates_answers_alone_and_counts_what_cannot_be_split(
    tmp_path: Path,
    model_folder: Folder,
    chat_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sami.contrasts import read_contrasts
    from sami.pipeline import Pipeline

    changes = {"generation__chain_of_thought": True, "training__iterations": 1, "training__steps": 2}
    file = write_recipe(tmp_path, model_folder("llama", True), **changes, generation__surplus=1.0)
    monkeypatch.setattr(Run, "engine", lambda self, iteration: Thinker(self.tokenizer))
    pipeline = Pipeline(load_recipe(file), tmp_path / "run")
    summary = pipeline.run()

    # 16 contrasts of two responses each: every fifth response is response 4, 9, 14, … of 32.
    spoiled = len({number // 2 for number in range(4, 32, 5)})
    assert summary["contrasts"]["iteration-1"]["dropped"] == {"unsplit": spoiled}
    assert summary["contrasts"]["iteration-1"]["kept"] == 16 - spoiled
    assert f"unsplit {spoiled}" in capsys.readouterr().err
    plain = PromptBuilder(chat_tokenizer, Prompt())
    for contrast in read_contrasts(tmp_path / "run" / "iteration-1" / "contrasts.parquet"):
        for ids, prompt, text, constitution in zip(
            contrast.response_ids, contrast.prompt_ids, contrast.responses, contrast.constitutions, strict=True
        ):
            assert text.lstrip().startswith("They like ")
            assert chat_tokenizer.decode(ids, skip_special_tokens=True) == text
            assert ids[-1] == EOS
            assert prompt == plain.training_prompt(contrast.query, [constitution], constitution)

    # An evaluation generates in the same way; what cannot be split is kept whole and counted.
    held_out = read_contrasts(tmp_path / "run" / "evaluation" / "responses" / "base.parquet")
    responses = [text for contrast in held_out for text in contrast.responses]
    assert [text.startswith("I reason about") for text in responses] == [n % 5 == 4 for n in range(len(responses))]
    reasons = [reason for contrast in held_out for reason in contrast.finish_reasons]
    assert reasons == ["unsplit" if n % 5 == 4 else "stop" for n in range(len(responses))]
    assert summary["policies"][0]["health"]["unfinished"] == pytest.approx(
        100 * reasons.count("unsplit") / len(reasons)
    )
    unsplit = len({number // 2 for number in range(4, len(responses), 5)})
    assert summary["unsplit"] == {"base": unsplit, "iteration-1": unsplit}
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unsplit"] == summary["unsplit"]


@pytest.mark.parametrize("writer", ["base", "another model of its vocabulary"])
def test_a_model_that_never_answers_stops_the_run_with_the_count_and_an_example(
    tmp_path: Path, model_folder: Folder, writer: str
) -> None:
    from sami.pipeline import Pipeline

    changes = {"generation__chain_of_thought": True, "training__iterations": 1, "training__steps": 2}
    if writer != "base":
        changes["generation__first_model"] = str(model_folder("mistral", True))
    pipeline = Pipeline(load_recipe(write_recipe(tmp_path, model_folder("llama", True), **changes)), tmp_path / "run")
    with pytest.raises(InputError, match=r"Only 0 of 9 contrasts passed the filters \(unsplit 9\)") as caught:
        pipeline.generate(1)
    assert "An example of unsplit: ['" in str(caught.value)
    assert "chain_of_thought.instruction more plainly" in str(caught.value)
    assert not (tmp_path / "run" / "iteration-1" / "contrasts.parquet").exists()


def test_the_stop_strings_of_the_plain_style_end_the_answer_not_the_reasoning(
    plain_tokenizer: PreTrainedTokenizerFast,
) -> None:
    builder = PromptBuilder(plain_tokenizer, Prompt(), THOUGHT)
    assert builder.stop == PLAIN_STOP
    assert not any(stop in THOUGHT.text + THOUGHT.marker for stop in builder.stop)
