"""The recipes of the paper's experiments: its hyper-parameters, its prompts, and what they share."""

import pytest

from sami.commands.smoke import _tokenizer
from sami.errors import InputError
from sami.models.known import family_of
from sami.principles import load_principles
from sami.prompts import PromptBuilder
from sami.recipe import EndpointJudge, Recipe, WrittenPrinciples, load_recipe

MISTRAL, MIXTRAL = "mistralai/Mistral-7B-v0.1", "mistralai/Mixtral-8x7B-v0.1"
LLAMA = "meta-llama/Meta-Llama-3-70B"
# model, steps of the iterations, optimiser, its decay, new tokens, scheme, principles to learn and held out
PAPER = {
    "hh-mistral-7b": (MISTRAL, [2, 4, 6], "adamw", 0.01, 350, "positive_vs_negative", 2, 0),
    "tldr-mistral-7b": (MISTRAL, [2, 4, 6], "adamw", 0.01, 350, "positive_vs_negative", 2, 0),
    "tldr-mixtral-8x7b-weak-writer": (MIXTRAL, [2, 4, 6], "rmsprop", 0.0, 350, "positive_vs_negative", 2, 0),
    "diverse-llama3-70b": (LLAMA, [4, 8, 12], "rmsprop", 0.0, 350, "opposite", 15, 5),
    "diverse-llama3-70b-cot": (LLAMA, [4, 8, 12], "rmsprop", 0.0, 500, "opposite", 15, 5),
}
# By model: the paper's rate, and the multiple of it that survives rounding here.
RATES = {"mistral-7b": (5e-7, 10), "mixtral-8x7b": (5e-7, 2), "llama3-70b": (1e-6, 1)}


def recipe_of(name: str) -> Recipe:
    return load_recipe(f"paper/{name}")


@pytest.mark.parametrize("name", PAPER)
def test_hyper_parameters_are_the_papers(name):
    recipe = recipe_of(name)
    model, steps, optimizer, decay, new_tokens, scheme, learned, held_out = PAPER[name]
    training, sampling = recipe.training, recipe.sampling
    assert recipe.model.source == model
    assert (training.iterations, training.restart_from, training.steps) == (3, "base", steps)
    assert (training.batch_size, training.optimizer, training.contrast, training.beta) == (128, optimizer, "both", 0)
    assert training.per_token
    assert (training.weight_decay, training.max_grad_norm) == (decay, 1.0)
    assert (sampling.constitutions, sampling.principles_per_constitution, sampling.scheme) == (2, 2, scheme)
    assert (recipe.generation.max_new_tokens, recipe.generation.temperature) == (new_tokens, 0)
    if isinstance(recipe.principles, WrittenPrinciples):
        assert recipe.principles.names == ["concise", "comprehensive"]
        assert recipe.principles.writer.label == "mistralai/Mistral-7B-Instruct-v0.1"
    else:
        principles = load_principles(recipe.principles)
        assert sum(not p.held_out for p in principles) == learned
        assert sum(p.held_out for p in principles) == held_out


@pytest.mark.parametrize("name", PAPER)
def test_the_rate_is_a_known_multiple_of_the_papers(name):
    (rate,) = recipe_of(name).training.lr
    ((paper, multiple),) = (known for model, known in RATES.items() if model in name)
    assert rate == pytest.approx(multiple * paper)


@pytest.mark.parametrize("name", PAPER)
def test_evaluation_is_the_papers(name):
    evaluation = recipe_of(name).evaluation
    (judge,) = evaluation.judges
    assert isinstance(judge, EndpointJudge)
    assert (judge.model, judge.temperature) == ("gpt-4-0613", 0)
    assert recipe_of(name).queries.evaluation >= 250
    (instruct,) = evaluation.baselines
    assert instruct.model is not None
    assert "Instruct" in instruct.model.source


@pytest.mark.parametrize("name", PAPER)
def test_an_iteration_never_repeats_a_query(name):
    recipe = recipe_of(name)
    contrasts = max(recipe.training.steps) * recipe.training.batch_size * (1 + recipe.generation.surplus)
    assert recipe.queries.train / 2 >= contrasts


@pytest.mark.parametrize("name", PAPER)
def test_the_training_prompt_is_the_end_of_the_generation_prompt_without_example(name):
    recipe = recipe_of(name)
    tokenizer = _tokenizer(family_of(recipe.model), ["The post is about bread."] * 4)
    prompts = PromptBuilder(tokenizer, recipe.prompt, recipe.generation.chain_of_thought)
    asked = ("I have bread.", ["Be brief.", "Be kind."], "1. Be brief.\n2. Be kind.")
    training = tokenizer.decode(prompts.training_prompt(*asked), skip_special_tokens=True)
    generation = tokenizer.decode(prompts.generation_prompt(*asked), skip_special_tokens=True)
    heading = "\n\nConstitution of the "
    assert generation.partition(heading)[1:] == training.partition(heading)[1:]
    assert "###" in generation  # the example ends before the constitution
    assert "###" not in training
    assert "Thank you" not in training
    # What comes after an answer in the example is where a response is cut.
    answer = generation.partition("###")[0].rpartition("\n\n")[0].rpartition("\n")[2]
    assert answer.split(":")[0] in ("Human", "Post")
    assert f"\n{answer.split(':')[0]}:" in prompts.stop
    seeded = "" if recipe.generation.chain_of_thought or name.startswith("hh") else " The post"
    assert training.endswith(":" + seeded)


def test_reasoning_is_asked_for_and_shown_in_generation_alone():
    recipe = recipe_of("diverse-llama3-70b-cot")
    tokenizer = _tokenizer(family_of(recipe.model), ["The post is about bread."] * 4)
    prompts = PromptBuilder(tokenizer, recipe.prompt, recipe.generation.chain_of_thought)
    asked = ("I have bread.", ["Be brief."], "Be brief.")
    generation = tokenizer.decode(prompts.generation_prompt(*asked), skip_special_tokens=True)
    assert generation.count("Final summary:") == 2  # asked for, and in the example
    assert "Final summary:" not in tokenizer.decode(prompts.training_prompt(*asked), skip_special_tokens=True)


def test_chain_of_thought_differs_from_the_plain_experiment_in_nothing_else():
    plain, thinking = recipe_of("diverse-llama3-70b"), recipe_of("diverse-llama3-70b-cot")
    for section in ("model", "queries", "principles", "sampling", "filters", "training", "evaluation", "launch"):
        assert getattr(plain, section) == getattr(thinking, section)
    assert plain.prompt.training_template == thinking.prompt.training_template


@pytest.mark.parametrize("name", PAPER)
def test_instruct_models_are_asked_through_their_chat_template(name):
    recipe = recipe_of(name)
    (instruct,) = recipe.evaluation.baselines
    assert instruct.model is not None
    assert instruct.prompt is not None
    tokenizer = _tokenizer(family_of(instruct.model), ["The post is about bread."] * 4)
    prompts = PromptBuilder(tokenizer, instruct.prompt, recipe.generation.chain_of_thought)
    asked = ("I have bread.", ["Be brief.", "Be kind."], "1. Be brief.\n2. Be kind.")
    text = tokenizer.decode(prompts.generation_prompt(*asked), skip_special_tokens=True)
    assert text.startswith("[user]")
    assert text.endswith("[assistant]")
    assert "Thank you" not in text
    assert "1. Be brief.\n2. Be kind." in text
    assert prompts.stop == ["\n[user]"]  # the end of a turn in the template of a smoke run


def test_a_prompt_has_no_effect_on_a_baseline_that_is_not_prompted():
    with pytest.raises(InputError, match="prompt only has an effect on a baseline with model or run"):
        load_recipe("quickstart", ["evaluation.baselines=[{name: sft, train: sft, prompt: {style: chat}}]"])
