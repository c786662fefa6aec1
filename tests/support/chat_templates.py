"""Chat templates that do with turns what those of published models do, in a few lines each, and their tokenizers."""

from collections.abc import Sequence

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.support.tiny import tiny_tokenizer

_LOOP = "{% for m in messages %}{% if m.role == 'assistant' %}"
_ASK = "{% if add_generation_prompt %}"


def _turns(user: str, answer: str, opening: str, before: str = "") -> str:
    """`user` for turns of user and system, `answer` for those of the assistant."""
    return f"{before}{_LOOP}{answer}{{% else %}}{user}{{% endif %}}{{% endfor %}}{_ASK}{opening}{{% endif %}}"


_IM = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
_PARTS = "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
_THINK = "{{ m.content.split('</think>')[-1] }}"

CHATML = _turns(_IM, _IM, "<|im_start|>assistant\n")
REFUSES_SYSTEM = _turns("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", _IM, "<|im_start|>model\n", _NO_SYSTEM)
DROPS_SYSTEM = _turns(f"{{% if m.role == 'user' %}}{_IM}{{% endif %}}", _IM, "<|im_start|>assistant\n")
DROPS_QUERY = "<|im_start|>assistant\n"
TAKES_PARTS = CHATML.replace("{{ m.content }}", _PARTS)
# A previous answer without an end of its own, as in GLM: the next turn's marker ends it.
ENDS_WITH_NEXT_TURN = _turns("<|user|>\n{{ m.content }}", "<|assistant|>\n{{ m.content }}", "<|assistant|>\n")
# The last answer ends with another token than earlier ones, as in gpt-oss.
LAST_ANSWER_DIFFERS = _turns(
    _IM,
    "<|im_start|>assistant\n{{ m.content }}{% if loop.last %}<eos>{% else %}<|im_end|>{% endif %}\n",
    "<|im_start|>assistant\n",
)
INSTRUCTION = _turns("### Instruction:\n{{ m.content }}\n\n", "### Response:\n{{ m.content }}\n\n", "### Response:\n")
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML
# Reasoning that the model starts by itself unless it is switched off, and reasoning that the prompt starts.
THINKS = _turns(
    _IM,
    f"<|im_start|>assistant\n<think>\n\n</think>\n\n{_THINK}<|im_end|>\n",
    "<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
)
OPENS_THINKING = _turns(_IM, f"<|im_start|>assistant\n{_THINK}<|im_end|>\n", "<|im_start|>assistant\n<think>\n")


def tokenizer_with(
    template: object, markers: Sequence[str] = ("<|im_start|>", "<|im_end|>")
) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, whose EOS is <eos>, with a template and special tokens for its markers."""
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.add_tokens(
        [AddedToken(marker, special=True, normalized=False) for marker in markers], special_tokens=True
    )
    # As in published tokenizers, the markers of reasoning are tokens and not special.
    tokenizer.add_tokens(
        [AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>", "<td>")]
    )
    tokenizer.chat_template = template
    return tokenizer
