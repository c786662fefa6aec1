"""A tokenizer's chat template: what it does with turns, how it ends an answer, and where it puts reasoning.

Nothing is assumed about a template. It is rendered with marked turns, and the marks show what it does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from sami.errors import InputError, one_line
from sami.prompts.control import control_tokens

Message = Mapping[str, str]

# What models write before and after their reasoning.
THINKING = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel>thought", "<channel|>"),
)

_ROLES_SHOWN = 6  # in messages
_USER, _ANSWER, _SYSTEM, _NEXT = "UserQuery7301", "Answer4158", "SystemText9264", "NextQuery5523"


@dataclass(frozen=True)
class End:
    """How a template ends an answer: by a token, by text that is not one token, or (neither) not at all."""

    token_id: int | None = None
    text: str | None = None


class ChatTemplate:
    """The chat template of a tokenizer that has one.

    Args:
        settings: keyword arguments of the template, such as `enable_thinking`.
        date: YYYY-MM-DD that the template sees as today; None for the real date.

    Raises:
        InputError: the tokenizer has several templates and none of them is the default.
    """

    def __init__(self, tokenizer: Any, settings: Mapping[str, Any] | None = None, date: str | None = None) -> None:
        self._tokenizer = tokenizer
        self.source = _source(tokenizer)
        self._settings = dict(settings or {})
        if date is not None and self.shows_date:
            self._settings["strftime_now"] = datetime.fromisoformat(date).strftime

    @property
    def shows_date(self) -> bool:
        """Whether the template may write today's date."""
        return "strftime_now" in self.source

    def render(self, messages: Sequence[Message], *, answer_next: bool = True) -> str:
        """The text of a conversation; `answer_next` opens the turn of the assistant.

        Raises:
            InputError: the template refuses the conversation.
        """
        try:
            return self._render(messages, answer_next)
        except Exception as error:  # a template can raise anything
            raise InputError(
                f"The model's chat template refuses a conversation of {_roles(messages)}: {one_line(error)}. Use "
                f"prompt.style=plain, or a tokenizer whose chat template allows it."
            ) from None

    def before_answer(self, messages: Sequence[Message]) -> str:
        """The text in front of an answer without reasoning, as the template writes answers that were given."""
        opened = self.render(messages)
        pair = self.thinking
        if pair is None or opened.rstrip().endswith(pair[1]):
            return opened
        try:
            before, found, _ = self._render([*messages, _turn("assistant", _ANSWER)], False).rpartition(_ANSWER)
        except Exception:  # the template ends conversations with a user's turn
            found = ""
        if found:
            return before
        return f"{opened.rstrip()}\n\n{pair[1]}\n\n" if self.opens_reasoning(opened) else opened

    def opens_reasoning(self, text: str) -> bool:
        """Whether a rendered conversation ends inside the reasoning that the model is to write."""
        return self.thinking is not None and text.rstrip().endswith(self.thinking[0])

    @cached_property
    def system_role(self) -> Literal["turn", "refused", "dropped"]:
        """What becomes of a system turn: shown, refused with an error, or left out without one."""
        try:
            rendered = self._render([_turn("system", _SYSTEM), _turn("user", _USER)], True)
        except Exception:
            self.render([_turn("user", _USER)])  # a template that refuses everything is an error
            return "refused"
        return "turn" if _SYSTEM in rendered else "dropped"

    @cached_property
    def end(self) -> End:
        """How an answer ends: by what follows it, or else by what precedes the next turn."""
        asked = [_turn("user", _USER), _turn("assistant", _ANSWER)]
        last = self._after_answer(asked)
        if last.strip():
            return self._end(last.strip())
        between = self._after_answer([*asked, _turn("user", _NEXT)]).partition(_NEXT)[0]
        return self._end(between.rstrip())

    @cached_property
    def thinking(self) -> tuple[str, str] | None:
        """What opens and closes the reasoning of a model whose template knows of it."""
        return next((pair for pair in THINKING if pair[1] in self.source), None)

    def unused(self) -> list[str]:
        """Settings that the template does not mention, so that they have no effect."""
        return [name for name in self._settings if name not in self.source]

    def _after_answer(self, messages: Sequence[Message]) -> str:
        try:
            return self._render(messages, False).partition(_ANSWER)[2]
        except Exception:  # not every template takes every conversation
            return ""

    def _end(self, following: str) -> End:
        controls = control_tokens(self._tokenizer)
        places = {number: following.find(text) for number, text in controls.items() if text in following}
        first = min(places, key=lambda number: (places[number], -len(controls[number])), default=None)
        before = following if first is None else following[: places[first]]
        if before.strip():
            return End(text=before.rstrip())
        return End(token_id=first)

    def _render(self, messages: Sequence[Message], answer_next: bool) -> str:
        if self._takes_parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]  # type: ignore[dict-item]
        return self._apply(messages, answer_next)

    def _apply(self, messages: Sequence[Any], answer_next: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=answer_next, tokenize=False, **self._settings
            )
        )

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether content must be a list of parts, as templates of multimodal models expect it."""
        text, part = _turn("user", _USER), {"role": "user", "content": [{"type": "text", "text": _USER}]}
        return not self._shows(text) and self._shows(part)

    def _shows(self, message: Mapping[str, Any]) -> bool:
        try:
            return _USER in self._apply([message], True)
        except Exception:  # the same error comes again where the template is used
            return False


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _roles(messages: Sequence[Message]) -> str:
    named = [f"{'an' if m['role'] == 'assistant' else 'a'} {m['role']} turn" for m in messages[:_ROLES_SHOWN]]
    more = [f"{len(messages) - len(named)} more turns"] if len(messages) > len(named) else []
    return " and ".join([*named, *more])


def _source(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    if not isinstance(template, dict):
        return str(template)
    if "default" not in template:
        raise InputError(
            f"The tokenizer has {len(template)} chat templates ({', '.join(sorted(template))}), and none of them is "
            f"the default. Set tokenizer.chat_template to the one that you mean and save the tokenizer, or use "
            f"prompt.style=plain."
        )
    return str(template["default"])


def has_chat_template(tokenizer: Any) -> bool:
    return getattr(tokenizer, "chat_template", None) is not None


def end_of_turn(tokenizer: Any) -> End:
    """How the tokenizer's chat template ends an answer; without a usable template, nothing does."""
    if not has_chat_template(tokenizer):
        return End()
    try:
        return ChatTemplate(tokenizer).end
    except InputError:  # a model that is prompted in plain style needs no usable template
        return End()
