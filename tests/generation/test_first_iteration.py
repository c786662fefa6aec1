"""Contrasts of the first iteration by another model, or from a file of the reference implementation."""

import json
import shutil

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sami.contrasts import read_contrasts
from sami.costs.estimate import plan
from sami.errors import InputError
from sami.generation import Completion, SamplingSettings
from sami.generation.respond import retokenized
from sami.generation.transformers_engine import TransformersEngine
from sami.models import loading
from sami.pipeline import Pipeline, run
from sami.prompts import PromptBuilder
from sami.recipe import load_recipe
from sami.reference_format import opposed, read_constitutions
from tests.support import tiny
from tests.support.places import SHARED
from tests.support.recipes import PRINCIPLES, TOPICS, write_recipe
from tests.support.reference_format import hh_prompt, row
from tests.support.tiny import EOS, tiny_model, tiny_tokenizer

CONTRASTS = SHARED / "data/hh/reference_format_contrasts.json"
ONE_ITERATION = {"training__iterations": 1, "training__steps": 2}
TWO_ITERATIONS = {"training__iterations": 2, "training__steps": [2, 2], "evaluation__principles_per_query": 1}
FROM_FILE = {"generation__first_contrasts": "contrasts.json"}


@pytest.fixture
def recipe(tmp_path, model_folder):
    """`recipe(**changes)`: a recipe of one iteration on a tiny chat model."""

    def made(architecture="llama", chat=True, **changes):
        return load_recipe(write_recipe(tmp_path, model_folder(architecture, chat), **ONE_ITERATION | changes))

    return made


def save(folder, tokenizer, architecture="llama"):
    """Another model than the run's own."""
    tiny_model(architecture, seed=7).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def generated(recipe, folder):
    """The contrasts of the first iteration, and what the step reported."""
    pipeline = Pipeline(recipe, folder)
    pipeline.generate(1)
    return read_contrasts(pipeline.directory.contrasts(1)), pipeline.directory.record("generate-1")["result"]


# Another model.


def test_another_model_of_the_same_vocabulary_and_style_gives_its_ids_as_they_are(tmp_path, recipe, chat_tokenizer):
    writer = save(tmp_path / "writer", chat_tokenizer)
    contrasts, result = generated(recipe(generation__first_model=writer), tmp_path / "run")
    own, _ = generated(recipe(), tmp_path / "own")
    assert result["written_by"] == "writer"
    engine = TransformersEngine(tiny_model("llama", seed=7), chat_tokenizer)
    for contrast, other in zip(contrasts, own, strict=True):
        # One principle in a chat: the prompt to train with is the one to generate from.
        assert contrast.prompt_ids == other.prompt_ids
        expected = engine.generate(contrast.prompt_ids, SamplingSettings(6))
        assert contrast.response_ids == [c.token_ids for c in expected]
        assert contrast.response_ids != other.response_ids


def test_the_end_of_anothers_turn_becomes_the_models_own_eos(tmp_path, recipe, model_folder):
    own, _ = generated(recipe(), tmp_path / "own")
    end = own[0].response_ids[0][2]  # a token that this model likes, as the last of its turns
    assert end != EOS
    writer = tmp_path / "writer"
    shutil.copytree(model_folder("llama", True), writer)
    config = json.loads((writer / "generation_config.json").read_text())
    (writer / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [EOS, end]}))
    contrasts, _ = generated(recipe(generation__first_model=str(writer)), tmp_path / "run")
    ids = contrasts[0].response_ids[0]
    assert ids == [*own[0].response_ids[0][: len(ids) - 1], EOS]
    assert contrasts[0].finish_reasons[0] == "stop"


@pytest.mark.parametrize("kind", ["another style", "another vocabulary"])
def test_texts_are_tokenized_again_where_ids_would_mean_something_else(
    tmp_path, recipe, chat_tokenizer, monkeypatch, kind
):
    if kind == "another vocabulary":
        monkeypatch.setattr(tiny, "VOCABULARY", 290)
    writer = save(tmp_path / "writer", tiny_tokenizer(chat=kind == "another vocabulary"), "gpt2")
    contrasts, result = generated(recipe(generation__first_model=writer), tmp_path / "run")
    assert result["written_by"] == "writer, tokenized again"
    for contrast in contrasts:
        for ids, text, reason in zip(contrast.response_ids, contrast.responses, contrast.finish_reasons, strict=True):
            ending = [EOS] if reason == "stop" or not text else []
            assert ids == [*chat_tokenizer(text)["input_ids"], *ending]
            assert text == text.strip()  # a chat's turn opens with a line break


def test_a_first_iteration_by_another_model_is_done_once_and_bound_to_its_weights(
    tmp_path, recipe, chat_tokenizer, monkeypatch
):
    writer = save(tmp_path / "writer", chat_tokenizer)
    first, folder = recipe(**TWO_ITERATIONS, generation__first_model=writer), tmp_path / "run"
    summary = run(first, folder)
    assert summary["contrasts"]["iteration-1"]["written_by"] == "writer"
    assert "written_by" not in summary["contrasts"]["iteration-2"]  # the trained model goes on alone
    contents = (folder / "iteration-1" / "contrasts.parquet").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_model", lambda *_: pytest.fail("a model was loaded"))
        assert run(first, folder) == summary
    assert (folder / "iteration-1" / "contrasts.parquet").read_bytes() == contents
    # The same weights elsewhere are the same writer; other weights, or none, are not.
    moved = shutil.move(writer, tmp_path / "moved")
    again = recipe(**TWO_ITERATIONS, generation__first_model=str(moved))
    Pipeline(again, folder).generate(1)
    tiny_model("llama", seed=8).save_pretrained(moved)
    with pytest.raises(InputError, match=r"other inputs:\n- written_by"):
        Pipeline(again, folder).generate(1)
    with pytest.raises(InputError, match="another recipe"):
        Pipeline(recipe(**TWO_ITERATIONS), folder).generate(1)


def test_a_writer_whose_context_is_too_short_is_refused_before_anything_is_written(tmp_path, recipe, chat_tokenizer):
    writer = save(tmp_path / "writer", chat_tokenizer)
    config = json.loads((tmp_path / "writer" / "config.json").read_text())
    (tmp_path / "writer" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20}))
    pipeline = Pipeline(recipe(generation__first_model=writer), tmp_path / "run")
    with pytest.raises(InputError, match=r"context of .*writer is 20 tokens"):
        pipeline.generate(1)
    assert not (tmp_path / "run").exists()


# Tokens of a text that was not generated here.


def spaced_tokenizer():
    """As SentencePiece models have it: every text opens with a space of its own, which decoding removes."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<bos>", "<eos>", "<pad>", "<unk>"]
    inner.train_from_iterator(tiny.CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize(
    ("prompt", "joined"),
    [
        ("Human: How?\n\nAssistant:", "Assistant: Boil it."),
        ("Summary: The egg", "The egg Boil it."),
    ],
)
def test_a_text_follows_a_word_after_one_space(plain_tokenizer, spaced, prompt, joined):
    tokenizer = spaced_tokenizer() if spaced else plain_tokenizer
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    for text in ("Boil it.", " Boil it. \n"):
        answer = retokenized(Completion([1, 2, 3], text, "stop"), ids, tokenizer)
        assert tokenizer.decode([*ids, *answer.token_ids[:-1]]).endswith(joined)
        assert answer.token_ids[-1] == tokenizer.eos_token_id
        assert answer.text.strip() == "Boil it."


def test_a_text_follows_a_line_break_or_a_marker_at_once(plain_tokenizer, chat_tokenizer):
    for tokenizer, prompt in ((plain_tokenizer, "Assistant:\n"), (chat_tokenizer, "How?<|assistant|>")):
        answer = retokenized(Completion([], " Boil it", "length"), tokenizer(prompt)["input_ids"], tokenizer)
        assert answer.token_ids == tokenizer("Boil it")["input_ids"]
        assert answer.finish_reason == "length"


# A file.

OPPOSITE = {p["definition"]: p["antithesis"] for p in PRINCIPLES}
BRIEF, KIND, ASKING = (PRINCIPLES[n]["definition"] for n in (0, 2, 3))


def contrasts_file(folder, *, statement=BRIEF, topics=TOPICS, responses=None):
    """Contrasts of one principle each, in the reference's format."""
    value = {}
    for number, topic in enumerate(topics):
        query = f"Why do people like {topic}?"
        first, second = responses or (f"They like {topic}.", f"They like {topic}, and much more")
        value[str(3 * number)] = [
            row(hh_prompt(query, statement), first, number),
            row(hh_prompt(query, OPPOSITE.get(statement, statement)), second, number),
        ]
    (folder / "contrasts.json").write_text(json.dumps(value))
    return folder / "contrasts.json"


def test_a_file_is_trained_on_and_the_model_goes_on_from_there(tmp_path, recipe, chat_tokenizer, capsys):
    file = contrasts_file(tmp_path)
    asked = recipe(**TWO_ITERATIONS, **FROM_FILE)
    assert asked.generation.first_contrasts == str(file)
    assert plan(asked).contrasts == [0, 9]
    summary = run(asked, tmp_path / "run")
    # Of the twelve queries three are held out: what is evaluated is never trained on.
    assert summary["contrasts"]["iteration-1"] == {
        "generated": 12,
        "kept": 9,
        "used": 8,
        "dropped": {"held_out_query": 3, "too_long": 0},
        "written_by": "contrasts.json",
    }
    assert "9 of 12 contrasts kept (dropped: held_out_query 3), written by contrasts.json" in capsys.readouterr().err
    assert summary["training"]["iteration-1"]["steps"] == 2
    assert "written_by" not in summary["contrasts"]["iteration-2"]
    contrasts = read_contrasts(tmp_path / "run" / "iteration-1" / "contrasts.parquet")
    evaluated = read_contrasts(tmp_path / "run" / "evaluation" / "responses" / "base.parquet")
    assert not {c.query for c in contrasts} & {c.query for c in evaluated}
    prompts = PromptBuilder(chat_tokenizer, asked.prompt)
    for contrast in contrasts:
        topic = contrast.query.split()[-1][:-1]
        assert contrast.constitutions == [BRIEF, OPPOSITE[BRIEF]]
        assert contrast.principles == [[("brief", True)], [("brief", False)]]
        assert contrast.prompt_ids == [prompts.training_prompt(contrast.query, [c], c) for c in contrast.constitutions]
        assert contrast.finish_reasons == ["stop", "length"]  # a sentence, and words that stop in the middle of one
        first, second = f"They like {topic}.", f"They like {topic}, and much more"
        assert contrast.responses == [first, second]
        ids = [chat_tokenizer(response)["input_ids"] for response in (first, second)]
        assert contrast.response_ids == [[*ids[0], EOS], ids[1]]


def test_filters_apply_to_a_file_as_well(tmp_path, recipe):
    contrasts_file(tmp_path, responses=("Same.", "Same."))
    with pytest.raises(InputError, match=r"Only 0 of 12 contrasts .* \(identical 9, held_out_query 3\)"):
        generated(recipe(**FROM_FILE, filters__identical=True), tmp_path / "run")


def test_responses_are_cut_at_the_prefix_that_the_prompt_holds(tmp_path, recipe, plain_tokenizer):
    file = contrasts_file(tmp_path, responses=("The post is about tea.", "The post says a lot."))
    value = json.loads(file.read_text())
    value["3"][1]["response"] = "No prefix here."
    file.write_text(json.dumps(value))
    asked = recipe("gpt2", chat=False, **FROM_FILE, prompt__response_prefix=" The post")
    contrasts, result = generated(asked, tmp_path / "run")
    assert result["dropped"]["without_prefix"] == 1
    for contrast in contrasts:
        whole = plain_tokenizer.decode([*contrast.prompt_ids[0], *contrast.response_ids[0]])
        assert whole.endswith("Assistant: The post is about tea.<eos>")


def test_a_response_beyond_the_models_context_is_counted(tmp_path, recipe):
    file = contrasts_file(tmp_path)
    value = json.loads(file.read_text())
    for rows in list(value.values())[:2]:
        rows[0]["response"] = "naïve " * 400
    file.write_text(json.dumps(value))
    contrasts, result = generated(recipe(**FROM_FILE, filters__min_survivors=0.1), tmp_path / "run")
    dropped = result["dropped"]
    assert dropped["too_long"] + dropped["held_out_query"] in (4, 5)  # two are too long, one perhaps held out too
    assert dropped["too_long"] >= 1
    assert max(len(ids) for c in contrasts for ids in c.response_ids) < 100


@pytest.mark.parametrize(
    ("file", "changes", "parts"),
    [
        ({"statement": "Be lazy."}, {}, ["Contrast 0", "'Be lazy.'", "sami import-principles"]),
        ({"statement": ASKING}, {}, ["asking", "held out"]),
        (
            {},
            {"sampling__constitutions": 3, "sampling__scheme": "independent"},
            ["has 2 constitutions", "sampling.constitutions is 3"],
        ),
        ({}, {"generation__first_model": "some/model"}, ["first_model and first_contrasts are both given"]),
        ({}, {"generation__first_contrasts": "missing.json"}, ["missing.json cannot be read"]),
    ],
)
def test_a_file_that_does_not_belong_to_the_recipe_is_refused_before_anything_is_written(
    tmp_path, recipe, file, changes, parts
):
    contrasts_file(tmp_path, **file)
    with pytest.raises(InputError) as caught:
        Pipeline(recipe(**FROM_FILE | changes), tmp_path / "run")
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert not (tmp_path / "run").exists()


def test_contrasts_of_a_file_do_not_go_with_principles_that_are_yet_to_be_written(tmp_path):
    path = write_recipe(tmp_path, "some/model", generation__first_contrasts="contrasts.json")
    with pytest.raises(InputError, match="principles of their own"):
        load_recipe(path, ["principles={task: answering, names: [brief, kind]}"])


@pytest.mark.skipif(not CONTRASTS.exists(), reason="../shared/data is absent")
def test_the_references_own_contrasts_are_trained_on(tmp_path, recipe):
    sampling = {"sampling__principles_per_constitution": 2, "sampling__scheme": "positive_vs_negative"}
    asked = recipe(**sampling, generation__first_contrasts=str(CONTRASTS), filters__identical=True)
    principles = [
        p.model_dump(include={"id", "definition", "antithesis"}) for p in opposed(read_constitutions([CONTRASTS]))
    ]
    (tmp_path / "principles.yaml").write_text(yaml.safe_dump(principles))
    [first, *_], result = generated(asked, tmp_path / "run")
    Pipeline(asked, tmp_path / "run").train(1)
    assert result["dropped"]["identical"] == 2
    assert result["kept"] + result["dropped"]["too_long"] == 148
    assert first.id == "file-1"
    assert "1. When faced with requests" in first.constitutions[0]
    assert len(first.principles[1]) == 2
    assert (tmp_path / "run" / "iteration-1" / "model" / "model.safetensors").is_file()
