"""What the model is asked: text in the right place, ids that a response can follow."""

import pytest

from sami.errors import InputError
from sami.prompts import PLAIN_STOP, PLAIN_SYSTEM, PromptBuilder
from sami.recipe import Prompt
from tests.support.tiny import BOS, EOS, tiny_tokenizer

QUERY = "Why is the sky blue?"
BRIEF = "Be brief."
PIRATE = "Talk like a pirate."
NUMBERED = f"1. {BRIEF}\n2. {PIRATE}"
INTRODUCED = "The assistant's answers follow this constitution:"
KINDS = ["generation_prompt", "training_prompt"]

both_kinds = pytest.mark.parametrize("kind", KINDS)


def builder(tokenizer, **settings) -> PromptBuilder:
    return PromptBuilder(tokenizer, Prompt(**settings))


def text(tokenizer, kind: str, *, principles=(BRIEF,), constitution=BRIEF, **settings) -> str:
    """The prompt as the model sees it, special tokens included."""
    ids = getattr(builder(tokenizer, **settings), kind)(QUERY, list(principles), constitution)
    return tokenizer.decode(ids, skip_special_tokens=False)


def two(tokenizer, kind: str, **settings) -> str:
    return text(tokenizer, kind, principles=(BRIEF, PIRATE), constitution=NUMBERED, **settings)


# --- chat ---


@both_kinds
def test_a_chat_prompt_is_one_user_turn_and_the_opening_of_the_answer(chat_tokenizer, kind):
    assert text(chat_tokenizer, kind) == f"<|user|>\n{QUERY}\n\n{BRIEF}<eos>\n<|assistant|>\n"
    assert two(chat_tokenizer, kind) == (
        f"<|user|>\n{QUERY}\n\nFollow these principles in your answer:\n{NUMBERED}<eos>\n<|assistant|>\n"
    )


@both_kinds
def test_a_system_message_comes_first_and_there_is_none_by_default(chat_tokenizer, kind):
    prompt = text(chat_tokenizer, kind, system="You are kind.")
    assert prompt.startswith("<|system|>\nYou are kind.<eos>\n<|user|>\n")
    assert "<|system|>" not in text(chat_tokenizer, kind)


@both_kinds
def test_a_chat_prompt_without_constitution_is_the_query_alone(chat_tokenizer, kind):
    prompt = text(chat_tokenizer, kind, principles=(), constitution="")
    assert prompt == f"<|user|>\n{QUERY}<eos>\n<|assistant|>\n"


def test_both_chat_prompts_are_the_same(chat_tokenizer):
    assert two(chat_tokenizer, KINDS[0]) == two(chat_tokenizer, KINDS[1])


def test_auto_takes_chat_where_there_is_a_template(chat_tokenizer, plain_tokenizer):
    assert builder(chat_tokenizer).chat
    assert not builder(plain_tokenizer).chat
    assert not builder(chat_tokenizer, style="plain").chat


def test_chat_without_a_template_is_refused(plain_tokenizer):
    with pytest.raises(InputError, match=r"no chat template.*prompt\.style=plain"):
        builder(plain_tokenizer, style="chat")


def test_special_tokens_of_the_chat_template_are_single_ids(chat_tokenizer):
    ids = builder(chat_tokenizer).training_prompt(QUERY, [BRIEF], BRIEF)
    user, assistant = chat_tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    assert ids[0] == user
    assert [ids.count(marker) for marker in (user, assistant, EOS)] == [1, 1, 1]


# --- plain ---


@both_kinds
def test_a_plain_prompt_holds_the_parts_in_order_and_ends_with_the_answers_name(plain_tokenizer, kind):
    prompt = two(plain_tokenizer, kind)
    parts = [PLAIN_SYSTEM, f"\n\n{INTRODUCED}\n{NUMBERED}\n\nHuman: ", QUERY, "\n\nAssistant:"]
    places = [prompt.rfind(part) for part in parts]
    assert places[0] == 0
    assert places == sorted(places)
    assert prompt.endswith(f"{QUERY}\n\nAssistant:")


def test_the_generation_prompt_has_the_example_and_the_training_prompt_has_not(plain_tokenizer):
    generation, training = (two(plain_tokenizer, kind) for kind in KINDS)
    assert generation.count("Human:") == 2
    assert "February" in generation
    assert "Human: Thank you, that helps. " + QUERY in generation
    assert training == f"{PLAIN_SYSTEM}\n\n{INTRODUCED}\n{NUMBERED}\n\nHuman: {QUERY}\n\nAssistant:"


@both_kinds
def test_a_plain_prompt_has_the_system_line_of_the_recipe(plain_tokenizer, kind):
    prompt = text(plain_tokenizer, kind, system="A helpful talk.")
    assert prompt.startswith(f"A helpful talk.\n\n{INTRODUCED}\n{BRIEF}\n\nHuman: ")
    assert PLAIN_SYSTEM not in prompt


@both_kinds
def test_a_plain_prompt_without_constitution_leaves_no_trace_of_one(plain_tokenizer, kind):
    prompt = text(plain_tokenizer, kind, principles=(), constitution="").casefold()
    assert "constitution" not in prompt
    assert "principle" not in prompt
    assert "\n\n\n" not in prompt
    assert prompt.startswith(f"{PLAIN_SYSTEM}\n\nHuman: ".casefold())


def test_stop_strings_are_the_next_turn_for_plain_and_none_for_chat(chat_tokenizer, plain_tokenizer):
    assert builder(plain_tokenizer).stop == PLAIN_STOP
    assert builder(chat_tokenizer).stop == []
    assert builder(plain_tokenizer, stop=[]).stop == []
    assert builder(chat_tokenizer, stop=["###"]).stop == ["###"]


# --- ids ---


@both_kinds
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_the_response_prefix_ends_both_prompts(kind, chat):
    tokenizer = tiny_tokenizer(chat)
    without, prompt = text(tokenizer, kind), text(tokenizer, kind, response_prefix=" The post")
    assert prompt == without + " The post"


@both_kinds
@pytest.mark.parametrize("appends_eos", [False, True])
def test_bos_stands_once_at_the_start_where_the_tokenizer_adds_it(kind, appends_eos):
    tokenizer = tiny_tokenizer(chat=False, adds_bos=True, appends_eos=appends_eos)
    ids = getattr(builder(tokenizer), kind)(QUERY, [BRIEF], BRIEF)
    assert ids[0] == BOS
    assert ids.count(BOS) == 1


@both_kinds
def test_bos_of_a_chat_template_is_not_added_again_by_the_tokenizer(kind):
    tokenizer = tiny_tokenizer(chat=True, adds_bos=True, appends_eos=True)
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    ids = getattr(builder(tokenizer), kind)(QUERY, [BRIEF], BRIEF)
    assert ids[0] == BOS
    assert ids.count(BOS) == 1
    assert ids[-1] != EOS


@both_kinds
def test_a_tokenizer_without_bos_gets_none(plain_tokenizer, kind):
    assert BOS not in getattr(builder(plain_tokenizer), kind)(QUERY, [BRIEF], BRIEF)


@both_kinds
@pytest.mark.parametrize("prefix", ["", " The post"])
def test_an_eos_that_the_tokenizer_appends_does_not_part_prompt_and_response(kind, prefix):
    appending, ordinary = tiny_tokenizer(chat=False, appends_eos=True), tiny_tokenizer(chat=False)
    assert appending("a")["input_ids"][-1] == EOS
    prompts = [
        getattr(builder(tokenizer, response_prefix=prefix), kind)(QUERY, [BRIEF], BRIEF)
        for tokenizer in (appending, ordinary)
    ]
    assert prompts[0] == prompts[1]


@both_kinds
def test_ids_read_back_as_the_query_in_any_script(plain_tokenizer, kind):
    query = "Où est 日本語? 🦜\n\tnaïve"
    ids = getattr(builder(plain_tokenizer), kind)(query, [BRIEF], BRIEF)
    assert query in plain_tokenizer.decode(ids)


@both_kinds
def test_braces_in_a_query_or_constitution_are_text_not_template(plain_tokenizer, kind):
    ids = getattr(builder(plain_tokenizer), kind)("What is {{ system }}?", ["Use {% raw %}."], "Use {% raw %}.")
    prompt = plain_tokenizer.decode(ids)
    assert "What is {{ system }}?" in prompt
    assert "Use {% raw %}." in prompt


# --- templates of the recipe ---


def test_templates_of_the_recipe_are_used_each_where_it_belongs(plain_tokenizer):
    settings = {
        "generation_template": "G {{ system }}|{{ query }}|{{ principles | join('+') }}",
        "training_template": "T {{ query }}|{{ constitution }}",
        "system": "S",
    }
    assert two(plain_tokenizer, "generation_prompt", **settings) == f"G S|{QUERY}|{BRIEF}+{PIRATE}"
    assert two(plain_tokenizer, "training_prompt", **settings) == f"T {QUERY}|{NUMBERED}"


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_a_generation_template_alone_is_used_for_training_too(chat):
    tokenizer, settings = tiny_tokenizer(chat), {"generation_template": "{{ query }} ({{ constitution }})"}
    generation, training = (text(tokenizer, kind, **settings) for kind in KINDS)
    assert generation == training
    assert f"{QUERY} ({BRIEF})" in training


def test_a_training_template_alone_leaves_the_default_for_generation(plain_tokenizer):
    assert "February" in text(plain_tokenizer, "generation_prompt", training_template="{{ query }}")
    assert text(plain_tokenizer, "training_prompt", training_template="{{ query }}") == QUERY


@pytest.mark.parametrize("field", ["generation_template", "training_template"])
@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{{ query", "end of print statement"),
        ("{% if query %}", "endif"),
        ("{{ question }}", "'question' is undefined"),
        ("{{ query | shorten }}", "shorten"),
        ("{{ query.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_does_not_render_is_refused_at_once(plain_tokenizer, field, template, part):
    with pytest.raises(InputError, match="does not render") as caught:
        builder(plain_tokenizer, **{field: template})
    assert part in str(caught.value)
    assert "query, constitution, principles and system" in str(caught.value)


@pytest.mark.parametrize("template", ["{{ query / 2 }}", "{{ 1 // 0 }}", "{{ query.format() // 1 }}"])
def test_a_template_with_an_impossible_expression_is_refused(plain_tokenizer, template):
    with pytest.raises(InputError, match="does not render"):
        builder(plain_tokenizer, generation_template=template)


@both_kinds
def test_a_chat_template_that_refuses_a_system_message_is_reported(kind):
    tokenizer = tiny_tokenizer()
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    tokenizer.chat_template = refuses + tokenizer.chat_template
    assert QUERY in text(tokenizer, kind)
    with pytest.raises(InputError, match=r"no system role here.*remove prompt\.system"):
        text(tokenizer, kind, system="You are kind.")


@both_kinds
def test_a_chat_template_that_is_broken_is_reported(kind):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}"
    with pytest.raises(InputError, match="chat template refuses"):
        text(tokenizer, kind)
