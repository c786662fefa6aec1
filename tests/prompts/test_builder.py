"""What the model is asked: text in the right place, ids that a response can follow."""

import pytest

from sami.errors import InputError
from sami.prompts import PLAIN_STOP, PLAIN_SYSTEM, PromptBuilder
from sami.recipe import ChainOfThought, Prompt
from tests.support import chat_templates as given
from tests.support.tiny import BOS, EOS, tiny_tokenizer

QUERY = "Why is the sky blue?"
BRIEF = "Be brief."
PIRATE = "Talk like a pirate."
NUMBERED = f"1. {BRIEF}\n2. {PIRATE}"
INTRODUCED = "The assistant's answers follow this constitution:"
KINDS = ["generation_prompt", "training_prompt"]

both_kinds = pytest.mark.parametrize("kind", KINDS)
both_styles = pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])


def builder(tokenizer, **settings):
    return PromptBuilder(tokenizer, Prompt(**settings))


def text(tokenizer, kind, *, principles=(BRIEF,), constitution=BRIEF, **settings):
    """The prompt as the model sees it, special tokens included."""
    ids = getattr(builder(tokenizer, **settings), kind)(QUERY, list(principles), constitution)
    return tokenizer.decode(ids, skip_special_tokens=False)


def two(tokenizer, kind, **settings):
    return text(tokenizer, kind, principles=(BRIEF, PIRATE), constitution=NUMBERED, **settings)


def none(tokenizer, kind, **settings):
    return text(tokenizer, kind, principles=(), constitution="", **settings)


# Chat.


@both_kinds
def test_a_chat_prompt_is_one_user_turn_and_the_opening_of_the_answer(chat_tokenizer, kind):
    assert text(chat_tokenizer, kind) == f"<|user|>\n{QUERY}\n\n{BRIEF}<eos>\n<|assistant|>\n"
    assert two(chat_tokenizer, kind) == (
        f"<|user|>\n{QUERY}\n\nFollow these principles in your answer:\n{NUMBERED}<eos>\n<|assistant|>\n"
    )
    assert none(chat_tokenizer, kind) == f"<|user|>\n{QUERY}<eos>\n<|assistant|>\n"


@both_kinds
def test_a_system_turn_comes_first_and_there_is_none_by_default(chat_tokenizer, kind):
    prompt = text(chat_tokenizer, kind, system="You are kind.\n")
    assert prompt.startswith("<|system|>\nYou are kind.\n<eos>\n<|user|>\n")
    assert text(chat_tokenizer, kind, system="").startswith("<|system|>\n<eos>")  # in place of a template's own
    assert "<|system|>" not in text(chat_tokenizer, kind)


def test_auto_takes_chat_where_there_is_a_template(chat_tokenizer, plain_tokenizer):
    assert builder(chat_tokenizer).chat
    assert not builder(plain_tokenizer).chat
    assert not builder(chat_tokenizer, style="plain").chat
    with pytest.raises(InputError, match=r"no chat template.*prompt\.style=plain"):
        builder(plain_tokenizer, style="chat")


def test_special_tokens_of_the_chat_template_are_single_ids(chat_tokenizer):
    ids = builder(chat_tokenizer).training_prompt(QUERY, [BRIEF], BRIEF)
    user, assistant = chat_tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    assert ids[0] == user
    assert [ids.count(marker) for marker in (user, assistant, EOS)] == [1, 1, 1]


# The constitution in the system turn.


@pytest.mark.parametrize(
    ("settings", "one", "several", "without"),
    [
        ({}, BRIEF, f"Follow these principles in your answers:\n{NUMBERED}", None),
        ({"system": "S."}, f"S.\n\n{BRIEF}", f"S.\n\nFollow these principles in your answers:\n{NUMBERED}", "S."),
        ({"system": "S: {{ principles | join('+') }}"}, f"S: {BRIEF}", f"S: {BRIEF}+{PIRATE}", "S: "),
        ({"system": "For {{ query }}"}, f"For {QUERY}\n\n{BRIEF}", f"For {QUERY}\n\n{NUMBERED}", f"For {QUERY}\n\n"),
    ],
)
@both_kinds
def test_the_constitution_can_go_in_the_system_turn(chat_tokenizer, kind, settings, one, several, without):
    user = f"<|user|>\n{QUERY}<eos>\n<|assistant|>\n"
    settings = {"constitution_in": "system"} | settings
    assert text(chat_tokenizer, kind, **settings) == f"<|system|>\n{one}<eos>\n{user}"
    assert two(chat_tokenizer, kind, **settings) == f"<|system|>\n{several}<eos>\n{user}"
    system = "" if without is None else f"<|system|>\n{without}<eos>\n"
    assert none(chat_tokenizer, kind, **settings) == system + user


@pytest.mark.parametrize(
    ("settings", "user_turn"),
    [
        ({"system": "S."}, f"S.\n\n{QUERY}\n\n{BRIEF}"),
        ({"constitution_in": "system"}, f"{BRIEF}\n\n{QUERY}"),
        ({"system": "S.", "generation_template": "{{ query }}|{{ system }}|{{ constitution }}"}, f"{QUERY}|S.|{BRIEF}"),
    ],
)
def test_a_model_without_a_system_role_gets_the_text_in_the_user_turn(settings, user_turn):
    tokenizer = given.tokenizer_with(given.REFUSES_SYSTEM)
    prompts = builder(tokenizer, **settings)
    asked = tokenizer.decode(prompts.generation_prompt(QUERY, [BRIEF], BRIEF))
    assert asked == f"<|im_start|>user\n{user_turn}<|im_end|>\n<|im_start|>model\n"
    said = ["the model's chat template has no system role, so the system text comes first in the user's turn"]
    assert prompts.notices == ([] if "generation_template" in settings else said)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"generation_template": "{{ constitution }}"}, "does not show the query"),
        ({"training_template": "{{ query }}"}, r"prompt\.training_template does not show the constitution"),
        ({"generation_template": "{{ query }}", "system": "{{ query }}"}, "does not show the constitution"),
        ({"system": "{{ constitution }}"}, "both show the constitution"),
        ({"constitution_in": "system", "generation_template": "{{ query }} {{ principles }}"}, "both show the"),
        ({"constitution_in": "system", "style": "plain"}, "a plain prompt has no turns"),
    ],
)
def test_templates_that_show_query_or_constitution_not_once_are_refused(chat_tokenizer, settings, reason):
    with pytest.raises(InputError, match=reason):
        builder(chat_tokenizer, **settings)


def test_a_system_text_that_places_the_constitution_needs_no_setting(chat_tokenizer):
    settings = {"system": "{{ constitution }}", "generation_template": "{{ query }}"}
    assert text(chat_tokenizer, KINDS[0], **settings).startswith(f"<|system|>\n{BRIEF}<eos>\n<|user|>\n{QUERY}<eos>")


# Plain.


@both_kinds
def test_a_plain_prompt_holds_the_parts_in_order_and_ends_with_the_answers_name(plain_tokenizer, kind):
    prompt = two(plain_tokenizer, kind)
    parts = [PLAIN_SYSTEM, f"\n\n{INTRODUCED}\n{NUMBERED}\n\nHuman: ", QUERY, "\n\nAssistant:"]
    places = [prompt.rfind(part) for part in parts]
    assert places[0] == 0
    assert places == sorted(places)
    assert prompt.endswith(f"{QUERY}\n\nAssistant:")
    own = text(plain_tokenizer, kind, system="A helpful talk.")
    assert own.startswith(f"A helpful talk.\n\n{INTRODUCED}\n{BRIEF}\n\nHuman: ")
    assert PLAIN_SYSTEM not in own


def test_the_generation_prompt_has_the_example_and_the_training_prompt_does_not(plain_tokenizer):
    generation, training = (two(plain_tokenizer, kind) for kind in KINDS)
    assert generation.count("Human:") == 2
    assert "Human: Thank you, that helps. " + QUERY in generation
    assert training == f"{PLAIN_SYSTEM}\n\n{INTRODUCED}\n{NUMBERED}\n\nHuman: {QUERY}\n\nAssistant:"


@both_kinds
def test_a_plain_prompt_without_constitution_leaves_no_trace_of_one(plain_tokenizer, kind):
    prompt = none(plain_tokenizer, kind)
    assert all(word not in prompt.casefold() for word in ("constitution", "principle", "\n\n\n"))
    assert prompt.startswith(f"{PLAIN_SYSTEM}\n\nHuman: ")


# Ends.


@pytest.mark.parametrize(
    ("template", "settings", "stop", "end"),
    [
        (None, {}, PLAIN_STOP, "<eos>"),
        (None, {"stop": []}, [], "<eos>"),
        (given.CHATML, {}, [], "<|im_end|>"),
        (given.CHATML, {"stop": ["###"]}, ["###"], "<|im_end|>"),
        (given.CHATML, {"style": "plain"}, PLAIN_STOP, "<eos>"),
        (given.INSTRUCTION, {"stop": ["\n\n"]}, ["\n\n", "\n\n### Instruction:"], "<eos>"),
    ],
)
def test_answers_end_as_the_template_or_the_style_says(template, settings, stop, end):
    tokenizer = given.tokenizer_with(template)
    prompts = builder(tokenizer, **settings)
    assert prompts.stop == stop
    assert prompts.end_id == tokenizer.convert_tokens_to_ids(end)


# Ids.


@both_kinds
@pytest.mark.parametrize("appends_eos", [False, True])
@both_styles
def test_the_response_prefix_ends_both_prompts_even_if_the_tokenizer_appends_eos(kind, appends_eos, chat):
    tokenizer, ordinary = tiny_tokenizer(chat, appends_eos=appends_eos), tiny_tokenizer(chat)
    assert (tokenizer("a")["input_ids"][-1] == EOS) is appends_eos
    assert text(tokenizer, kind, response_prefix=" The post") == text(ordinary, kind) + " The post"


@both_kinds
@pytest.mark.parametrize("appends_eos", [False, True])
@both_styles
def test_bos_stands_once_at_the_start_where_tokenizer_or_template_adds_it(kind, appends_eos, chat):
    tokenizer = tiny_tokenizer(chat, adds_bos=True, appends_eos=appends_eos)
    if chat:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    ids = getattr(builder(tokenizer), kind)(QUERY, [BRIEF], BRIEF)
    assert ids[0] == BOS
    assert ids.count(BOS) == 1
    assert ids[-1] != EOS


@both_kinds
@pytest.mark.parametrize("query", ["Où est 日本語? 🦜\n\tnaïve", "What is {{ system }}? {% raw %}"])
def test_a_query_is_text_in_any_script_and_never_a_template(plain_tokenizer, kind, query):
    ids = getattr(builder(plain_tokenizer), kind)(query, ["Use {% raw %}."], "Use {% raw %}.")
    prompt = plain_tokenizer.decode(ids)
    assert query in prompt
    assert "Use {% raw %}." in prompt


# Templates and settings of the recipe.


def test_templates_of_the_recipe_are_used_each_where_it_belongs(plain_tokenizer):
    settings = {
        "generation_template": "G {{ system }}|{{ query }}|{{ principles | join('+') }}",
        "training_template": "T {{ query }}|{{ constitution }}",
        "system": "S",
    }
    assert two(plain_tokenizer, "generation_prompt", **settings) == f"G S|{QUERY}|{BRIEF}+{PIRATE}"
    assert two(plain_tokenizer, "training_prompt", **settings) == f"T {QUERY}|{NUMBERED}"


@both_styles
def test_a_generation_template_alone_is_used_for_training_too(chat):
    tokenizer, settings = tiny_tokenizer(chat), {"generation_template": "{{ query }} ({{ constitution }})"}
    generation, training = (text(tokenizer, kind, **settings) for kind in KINDS)
    assert generation == training
    assert f"{QUERY} ({BRIEF})" in training


def test_a_training_template_alone_leaves_the_default_for_generation(plain_tokenizer):
    settings = {"training_template": "{{ query }} {{ constitution }}"}
    assert "February" in text(plain_tokenizer, "generation_prompt", **settings)
    assert text(plain_tokenizer, "training_prompt", **settings) == f"{QUERY} {BRIEF}"


@pytest.mark.parametrize("field", ["generation_template", "training_template", "system"])
@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{{ query", "end of print statement"),
        ("{% if query %}", "endif"),
        ("{{ question }}", "'question' is undefined"),
        ("{{ query | shorten }}", "shorten"),
        ("{{ query.__class__.__mro__ }}", "unsafe"),
        ("{{ query / 2 }}", "unsupported operand"),
        ("{{ 1 // 0 }}", "zero"),
    ],
)
def test_a_template_that_does_not_render_is_refused_at_once(chat_tokenizer, field, template, part):
    with pytest.raises(InputError, match="does not render") as caught:
        builder(chat_tokenizer, **{field: template})
    assert part in str(caught.value)
    assert "query, constitution, principles and system" in str(caught.value)


def test_arguments_of_the_chat_template_reach_it_and_others_are_noticed():
    tokenizer = given.tokenizer_with(given.THINKS)
    settings = {"template_kwargs": {"enable_thinking": False, "colour": 1}, "date": "2024-02-29"}
    assert text(tokenizer, KINDS[0], **settings).endswith("<think>\n\n</think>\n\n")
    [notice] = builder(tokenizer, **settings).notices
    assert notice.startswith("prompt.template_kwargs.colour has no effect")
    dated = given.tokenizer_with(given.DATED)
    assert text(dated, KINDS[0], date="2024-02-29").startswith("Today is 29 Feb 2024.")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"template_kwargs": {"tokenize": True}}, "tokenize is set by sami itself"),
        ({"date": "29.02.2024"}, "is not a date; write it as YYYY-MM-DD"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        Prompt(**settings)


# Reasoning.


@pytest.mark.parametrize(
    ("template", "settings", "thinking", "opens"),
    [
        (given.CHATML, {}, None, False),
        (given.THINKS, {}, ("<think>", "</think>"), False),
        (given.OPENS_THINKING, {}, ("<think>", "</think>"), True),
        (given.OPENS_THINKING, {"style": "plain"}, None, False),
        (given.CHATML, {"thinking": {"open": "<<", "close": ">>"}, "response_prefix": "<<"}, ("<<", ">>"), True),
    ],
)
def test_markers_of_reasoning_are_those_of_the_template_or_the_recipe(template, settings, thinking, opens):
    prompts = builder(given.tokenizer_with(template), **settings)
    assert prompts.thinking == thinking
    assert prompts.opens_reasoning(prompts.generation_prompt(QUERY, [BRIEF], BRIEF)) is opens


@both_styles
def test_a_chain_of_thought_is_asked_for_when_generating_and_not_when_training(chat):
    tokenizer, thought = tiny_tokenizer(chat), ChainOfThought(instruction="Plan, then write {marker}", marker="Reply>")
    prompts, without = PromptBuilder(tokenizer, Prompt(), thought), builder(tokenizer)
    asked = (QUERY, [BRIEF], BRIEF)
    assert prompts.training_prompt(*asked) == without.training_prompt(*asked)
    assert not any(stop in thought.text + thought.marker for stop in prompts.stop)
    generation = tokenizer.decode(prompts.generation_prompt(*asked))
    if chat:
        before = tokenizer.decode(without.generation_prompt(*asked))
        assert generation == before.replace(BRIEF, f"{BRIEF}\n\nPlan, then write Reply>")
    else:  # the worked example reasons as well
        assert "\n\nPlan, then write Reply>\n\n" in generation
        assert "fewer than 30. Reply> February" in generation


def test_a_template_of_ones_own_shows_the_instruction_or_is_refused(plain_tokenizer):
    thought, asked = ChainOfThought(), (QUERY, [], "")
    own = "{{ query }}{{ constitution }}|{{ reasoning }}|{{ marker }}"
    prompts = PromptBuilder(plain_tokenizer, Prompt(generation_template=own), thought)
    assert plain_tokenizer.decode(prompts.generation_prompt(*asked)) == f"{QUERY}|{thought.text}|Answer:"
    assert plain_tokenizer.decode(prompts.training_prompt(*asked)) == f"{QUERY}||"
    with pytest.raises(InputError, match="generation_template does not ask for it"):
        PromptBuilder(plain_tokenizer, Prompt(generation_template="{{ query }}{{ constitution }}"), thought)
