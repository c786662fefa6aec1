"""What chat templates do with turns: where answers end, what becomes of a system turn, and where reasoning goes."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from sami.errors import InputError
from sami.principles import Constitution, Principle
from sami.prompts import PromptBuilder
from sami.prompts.chat_template import ChatTemplate, End, end_of_turn
from sami.prompts.check import PromptCheck
from sami.recipe import Prompt
from tests.support import chat_templates as given

QUESTION = [{"role": "user", "content": "Why?"}]


def of(template, date=None, **settings):
    return ChatTemplate(given.tokenizer_with(template), settings, date)


@pytest.mark.parametrize(
    ("template", "token", "text"),
    [
        (given.CHATML, "<|im_end|>", None),
        (given.TAKES_PARTS, "<|im_end|>", None),
        (given.ENDS_WITH_NEXT_TURN, "<|user|>", None),
        (given.LAST_ANSWER_DIFFERS, "<eos>", None),
        (given.INSTRUCTION, None, "\n\n### Instruction:"),
        (given.INSTRUCTION.replace("}}\n\n", "}} <eos>\n"), "<eos>", None),
    ],
)
def test_an_answer_ends_with_what_the_template_writes_after_it(template, token, text):
    tokenizer = given.tokenizer_with(template)
    number = None if token is None else tokenizer.convert_tokens_to_ids(token)
    assert end_of_turn(tokenizer) == End(number, text)


def test_an_end_that_is_not_one_token_is_text():
    """A finetune of a base model whose tokenizer never got the markers of ChatML."""
    assert end_of_turn(given.tokenizer_with(given.CHATML, markers=())) == End(text="<|im_end|>")


@pytest.mark.parametrize("template", [None, {"tool_use": given.CHATML}, "{% for"])
def test_without_a_usable_template_nothing_but_eos_ends_an_answer(template):
    assert end_of_turn(given.tokenizer_with(template)) == End()


@pytest.mark.parametrize(
    ("template", "role"),
    [
        (given.CHATML, "turn"),
        (given.TAKES_PARTS, "turn"),
        (given.REFUSES_SYSTEM, "refused"),
        (given.DROPS_SYSTEM, "dropped"),
    ],
)
def test_what_becomes_of_a_system_turn_is_found_out(template, role):
    assert of(template).system_role == role


def test_a_template_that_refuses_every_conversation_is_an_error():
    for use in (lambda one: one.render(QUESTION), lambda one: one.system_role):
        with pytest.raises(InputError, match=r"refuses a conversation of a user turn: no\. .*prompt\.style=plain"):
            use(of("{{ raise_exception('no') }}"))


def test_content_is_a_list_where_the_template_expects_one():
    assert of(given.TAKES_PARTS).render(QUESTION) == of(given.CHATML).render(QUESTION)


def test_of_several_templates_the_default_is_used():
    several = {"default": given.CHATML, "rag": given.DROPS_QUERY}
    assert of(several).render(QUESTION) == of(given.CHATML).render(QUESTION)
    with pytest.raises(InputError, match=r"has 2 chat templates \(rag, tool_use\), and none of them is the default"):
        of({"tool_use": given.CHATML, "rag": given.CHATML})


@pytest.mark.parametrize(
    ("template", "settings", "asked", "answered"),
    [
        (given.CHATML, {}, "", ""),
        (given.THINKS, {}, "", "<think>\n\n</think>\n\n"),
        (given.THINKS, {"enable_thinking": False}, "<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
        (given.OPENS_THINKING, {}, "<think>\n", ""),
    ],
)
def test_before_an_answer_there_is_no_open_reasoning(template, settings, asked, answered):
    """Answers are trained on without reasoning, where the template puts answers that were given without it."""
    chat = of(template, **settings)
    assert chat.render(QUESTION).rpartition("assistant\n")[2] == asked
    assert chat.before_answer(QUESTION).rpartition("assistant\n")[2] == answered
    assert chat.opens_reasoning(chat.render(QUESTION)) is (template == given.OPENS_THINKING)


def test_reasoning_is_closed_where_a_template_takes_no_answers():
    refuses = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}{# </think> #}"
    chat = of(refuses + "{{ messages[0].content }}\n<think>\n")
    assert chat.before_answer(QUESTION) == "Why?\n<think>\n\n</think>\n\n"


# Templates of published models, which TRL ships with.

PUBLISHED = sorted(Path(find_spec("trl").origin).parent.glob("chat_templates/*.jinja")) if find_spec("trl") else []
ENDS = {
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "gemma": "<end_of_turn>",
    "glm4moe": "<|user|>",
    "gptoss": "<|return|>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "qwen3": "<|im_end|>",
}


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_published_templates_show_all_that_is_asked_and_end_answers(file):
    source = file.read_text()
    markers = {mark for mark in re.findall(r"<\|?[\w｜▁/|]+?\|?>|\[/?[A-Z]{3,}\]", source) if "think" not in mark}
    tokenizer = given.tokenizer_with(source, sorted(markers - {"<eos>", "<bos>", "<pad>", "<td>"}))
    principle = Principle(id="p", definition="Be brief.", antithesis="Be long.")
    brief, long = (Constitution(((principle, positive),)) for positive in (True, False))
    for settings in ({}, {"system": "Be kind now."}, {"constitution_in": "system"}):
        prompts = PromptBuilder(tokenizer, Prompt(**settings, date="2024-02-29"))
        assert PromptCheck(prompts, "m")("Why is the sky blue?", [brief, long])
        assert not prompts.opens_reasoning(prompts.training_prompt("Why?", ["Be brief."], "Be brief."))
    end = ChatTemplate(tokenizer).end.token_id
    assert end is not None
    assert tokenizer.convert_ids_to_tokens(end) == ENDS.get(file.stem, tokenizer.convert_ids_to_tokens(end))
