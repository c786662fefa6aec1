"""Before a run, prompts are read back from their ids: nothing that was asked may be missing."""

from dataclasses import dataclass, replace

import pytest
from transformers import PreTrainedTokenizerFast

from sami.errors import InputError
from sami.prompts import PromptBuilder
from sami.prompts.check import PromptCheck
from sami.recipe import Prompt
from tests.support import chat_templates as given
from tests.support.tiny import tiny_tokenizer

QUERY = 'Why is the "sky" blue?\n\nIt isn\'t green.'


@dataclass(frozen=True)
class Stated:
    texts: list[str]
    text: str


BRIEF, LONG = Stated(["Be brief."], "Be brief."), Stated(["Be long."], "Be long.")
BOTH = Stated(["Be brief.", "Be kind."], "1. Be brief.\n2. Be kind.")


def checked(tokenizer, *constitutions, query=QUERY, **settings):
    return PromptCheck(PromptBuilder(tokenizer, Prompt(**settings)), "m")(query, constitutions or (BRIEF, LONG, BOTH))


@pytest.mark.parametrize(
    ("template", "settings"),
    [
        (given.CHATML, {"system": "Be kind."}),
        (given.CHATML, {"constitution_in": "system"}),
        (given.CHATML.replace("{{ m.content }}", "{{ m.content | trim | tojson }}"), {"system": "Be kind."}),
        (given.TAKES_PARTS, {"system": "Be kind."}),
        (given.REFUSES_SYSTEM, {"system": "Be kind.", "constitution_in": "system"}),
        (given.DROPS_SYSTEM, {}),
        (given.DROPS_SYSTEM, {"system": "Kind.", "generation_template": "{{ system }} {{ query }} {{ constitution }}"}),
        (given.THINKS, {"system": "Be kind."}),
        (given.CHATML, {"style": "plain"}),
        (given.CHATML, {"generation_template": "{{ query }} {{ constitution | trim('.') | upper }}"}),
    ],
)
@pytest.mark.parametrize("query", [QUERY, "???", "日本語は？🦜", "<|im_end|><eos>", " \n"])
def test_prompts_that_show_everything_pass(template, settings, query):
    tokenizer = given.tokenizer_with(template)
    prompts = PromptBuilder(tokenizer, Prompt(**settings))
    wanted = [prompts.generation_prompt(query, c.texts, c.text) for c in (BRIEF, LONG)]
    assert checked(tokenizer, BRIEF, LONG, query=query, **settings) == wanted


@pytest.mark.parametrize(
    ("template", "settings", "missing"),
    [
        (given.DROPS_SYSTEM, {"system": "Be kind."}, r"the system text 'Be kind\.'.*leaves out the system turn"),
        (given.DROPS_SYSTEM, {"constitution_in": "system"}, r"the system text 'Be brief\.'.*leaves out the system"),
        (given.DROPS_QUERY, {}, "the query 'Why is"),
        (given.CHATML.replace("m.content", "m.content[:45]"), {}, r"the principle 'Be brief\.'"),
        (given.CHATML.replace("m.content", "m.content[20:]"), {}, "the query 'Why is"),
        (given.CHATML, {"generation_template": "{{ query[:5] }} {{ constitution }}"}, "generation .* the query"),
        (given.CHATML, {"training_template": "{{ query }} {{ principles[:0] }}"}, r"training .* 'Be brief\.'"),
        (None, {"system": "S2", "generation_template": "{{ query }}{{ constitution }}"}, "system text 'S2'.*{{ system"),
    ],
)
def test_a_prompt_that_lacks_something_is_refused(template, settings, missing):
    with pytest.raises(InputError, match=missing):
        checked(given.tokenizer_with(template), **settings)


def test_constitutions_that_differ_in_what_a_prompt_drops_are_refused(chat_tokenizer):
    settings = {"generation_template": "{{ query }} {{ principles | join(' ') | replace('.', '') }}"}
    with pytest.raises(InputError, match=r"Two constitutions give the same prompt .*'Be brief\.' and 'Be brief'"):
        checked(chat_tokenizer, BRIEF, Stated(["Be brief"], "Be brief"), **settings)


def test_a_tokenizer_that_cuts_long_prompts_is_refused():
    class Cutting(PreTrainedTokenizerFast):
        def __call__(self, *args, **settings):
            return {"input_ids": super().__call__(*args, **settings)["input_ids"][-400:]}

    tokenizer = tiny_tokenizer()
    tokenizer.__class__ = Cutting
    check = PromptCheck(PromptBuilder(tokenizer, Prompt()), "m")
    check("Short?", [BRIEF, LONG])
    with pytest.raises(InputError, match=r"does not show the query .*the tokenizer cuts prompts short"):
        check("Start? " + "Why? " * 200, [BRIEF, LONG])


def test_equal_constitutions_may_have_equal_prompts(chat_tokenizer):
    assert len(checked(chat_tokenizer, BRIEF, replace(BRIEF))) == 2
