"""(constitution, query) to token ids, through the model's chat template or a plain template."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sami.errors import InputError
from sami.prompts.chat_template import ChatTemplate, has_chat_template
from sami.prompts.control import PlainText, control_tokens, without_control
from sami.prompts.templates import (
    CHAT,
    CHAT_QUERY,
    PLAIN,
    PLAIN_STOP,
    PLAIN_SYSTEM,
    PLAIN_WITH_EXAMPLE,
    TextTemplate,
    require_shown_once,
    system_template,
    text_template,
    values,
)
from sami.queries import Asked, Conversation
from sami.queries.conversation import as_conversation
from sami.recipe import ChainOfThought, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptBuilder:
    """Builds the prompts of one run.

    A constitution is stated in the last user turn of a conversation, or in its system turn after the conversation's
    own system text. Templates see the last user turn as `query`; a plain prompt has the earlier turns before it.

    Args:
        tokenizer: of the model that answers or is trained.
        settings: the recipe's `prompt` section.
        chain_of_thought: what to ask for before an answer when generating; None asks for the answer alone.

    Attributes:
        chat: whether prompts go through the tokenizer's chat template.
        stop: strings that end a response.
        end_id: the token that ends an answer: the chat template's end of turn, or EOS.
        control: ids and texts of the tokenizer's control tokens, which no text that is asked can contain.
        thinking: what opens and closes the reasoning of a thinking model; None for other models.

    Raises:
        InputError: style "chat" for a tokenizer without chat template, or a template that does not render or leaves
            out the query or the constitution.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        settings: Prompt,
        chain_of_thought: ChainOfThought | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._settings = settings
        self._template = self._chat_template()
        self.chat = self._template is not None
        self.control = control_tokens(tokenizer)
        self._plain_text = PlainText(self.control.values())
        self._prefix = settings.response_prefix
        self._asked = (
            {"reasoning": chain_of_thought.text, "marker": chain_of_thought.marker} if chain_of_thought else {}
        )
        self._system_text = settings.system if settings.system is not None or self.chat else PLAIN_SYSTEM
        self._system = system_template(settings.system, with_constitution=settings.constitution_in == "system")
        self._generation, self._training = self._user_templates()
        if chain_of_thought and not self._generation.shows("reasoning"):
            raise InputError(
                "generation.chain_of_thought is on, and prompt.generation_template does not ask for it. Put "
                "{{ reasoning }} where the instruction belongs; it is empty in training prompts."
            )
        self.stop, self.end_id = self._endings()
        own = None if settings.thinking is None else (settings.thinking.open, settings.thinking.close)
        self.thinking = own or (self._template.thinking if self._template else None)

    def generation_prompt(self, query: Asked, principles: list[str], constitution: str) -> list[int]:
        """Ids to generate from; an empty constitution asks without one."""
        return self._ids(self._generation, query, principles, constitution, generating=True)

    def training_prompt(self, query: Asked, principles: list[str], constitution: str) -> list[int]:
        """Ids that the response's log-probability is conditioned on."""
        return self._ids(self._training, query, principles, constitution, generating=False)

    def system_text(self, query: Asked, principles: Sequence[str], constitution: str) -> str:
        """The text of the system turn (chat) or the first lines (plain); empty where there is none."""
        asked = as_conversation(query)
        # A conversation's own system text takes the place of the default, and comes before what the recipe states.
        replaces_default = asked.system is not None and self._settings.system is None
        text = "" if replaces_default else self._system_text or ""
        if self._system is not None:
            made = values(self._query(asked), self._plain(principles), self._plain_text(constitution), text)
            text = self._system(made)
        return "\n\n".join(self._plain_text(one) for one in (asked.system, text) if one)

    @property
    def wants_system(self) -> bool:
        """Whether the recipe has a text for the system turn, which prompts must then show."""
        return self._settings.system is not None or self._settings.constitution_in == "system"

    @property
    def has_system_role(self) -> bool:
        """Whether the model's chat template shows a system turn."""
        return self._template is not None and self._template.system_role == "turn"

    def notices(self, *, own_system: bool = False) -> list[str]:
        """Facts about these prompts for the person who starts a run.

        Args:
            own_system: some conversations have a system turn of their own.
        """
        if self._template is None:
            return []
        found = []
        if unused := self._template.unused():
            names = ", ".join(f"prompt.template_kwargs.{name}" for name in unused)
            found.append(f"{names} has no effect: the model's chat template does not use it")
        if (
            (self.wants_system or own_system)
            and self._template.system_role == "refused"
            and not self._generation.shows("system")
        ):
            found.append(
                "the model's chat template has no system role, so the system text comes first in the user's turn"
            )
        return found

    def opens_reasoning(self, prompt: Sequence[int]) -> bool:
        """Whether a generation prompt ends inside the reasoning that the model is to write."""
        if self.thinking is None:
            return False
        tail = str(self.tokenizer.decode(list(prompt[-32:]), skip_special_tokens=False))
        return tail.rstrip().endswith(self.thinking[0])

    def _chat_template(self) -> ChatTemplate | None:
        settings, known = self._settings, has_chat_template(self.tokenizer)
        if settings.style == "chat" and not known:
            raise InputError(
                "prompt.style is 'chat', and this model's tokenizer has no chat template. "
                "Use prompt.style=plain for a pretrained base model."
            )
        if known and settings.style != "plain":
            return ChatTemplate(self.tokenizer, settings.template_kwargs, settings.date)
        if settings.constitution_in == "system":
            raise InputError(
                "prompt.constitution_in is 'system', and a plain prompt has no turns: the constitution comes first in "
                "it anyway. Remove the setting, or use a model with a chat template."
            )
        return None

    def _user_templates(self) -> tuple[TextTemplate, TextTemplate]:
        """The template to generate with and the one to train with."""
        settings = self._settings
        default = CHAT_QUERY if settings.constitution_in == "system" else CHAT
        generation = settings.generation_template or (default if self.chat else PLAIN_WITH_EXAMPLE)
        training = settings.training_template or (
            PLAIN if not self.chat and settings.generation_template is None else generation
        )
        made = text_template(generation), text_template(training)
        for key, template in zip(("generation_template", "training_template"), made, strict=True):
            system = self._system if self.chat or template.shows("system") else None
            require_shown_once(key, template, system)
        return made

    def _endings(self) -> tuple[list[str], int]:
        given = self._settings.stop
        if self._template is None:
            return list(PLAIN_STOP if given is None else given), self.tokenizer.eos_token_id
        end = self._template.end
        by_text = [] if end.text is None or end.text in (given or []) else [end.text]
        return [*(given or []), *by_text], self.tokenizer.eos_token_id if end.token_id is None else end.token_id

    def _plain(self, texts: Sequence[str]) -> list[str]:
        return [self._plain_text(text) for text in texts]

    def _query(self, asked: Conversation) -> str:
        """What templates see as the query."""
        if self._template is not None or not asked.earlier:
            return self._plain_text(asked.last)
        if asked.earlier[0].role != "user":
            raise InputError(
                "A conversation starts with an assistant turn, and a plain prompt starts with the human. Remove that "
                "turn, or use a model with a chat template."
            )
        names = {"user": "Human", "assistant": "Assistant"}
        turns = [f"{names[turn.role]}: {self._plain_text(turn.content)}" for turn in asked.earlier]
        # A template writes "Human:" in front of the query, and so in front of the first of these turns.
        return "\n\n".join([*turns, f"Human: {self._plain_text(asked.last)}"]).removeprefix("Human: ")

    def _ids(
        self, template: TextTemplate, query: Asked, principles: list[str], constitution: str, *, generating: bool
    ) -> list[int]:
        asked = as_conversation(query)
        system = self.system_text(query, principles, constitution)
        text = template(
            values(
                self._query(asked),
                self._plain(principles),
                self._plain_text(constitution),
                system,
                self._asked if generating else {},
            )
        )
        if self._template is None:
            return plain_ids(self.tokenizer, text + self._prefix)
        earlier = [{"role": turn.role, "content": self._plain_text(turn.content)} for turn in asked.earlier]
        turns = [*earlier, {"role": "user", "content": text}]
        messages = self._messages(self._template, turns, system, shown=template.shows("system"))
        rendered = self._template.render(messages) if generating else self._template.before_answer(messages)
        return chat_ids(self.tokenizer, rendered + self._prefix)

    def _messages(
        self, chat: ChatTemplate, turns: list[dict[str, str]], system: str, *, shown: bool
    ) -> list[dict[str, str]]:
        """The turns of a prompt with the system text; a model without a system role gets it in the first user turn.

        Args:
            shown: the last user turn shows the system text already.
        """
        if not system and self._settings.system is None:
            return turns
        if chat.system_role == "refused":
            if not shown and system:
                first = next(turn for turn in turns if turn["role"] == "user")
                first["content"] = f"{system}\n\n{first['content']}"
            return turns
        if chat.system_role == "dropped" and shown:
            return turns
        return [{"role": "system", "content": system}, *turns]


def question_prompt(
    tokenizer: "PreTrainedTokenizerBase", question: str, opening: str, date: str | None = None
) -> list[int]:
    """Ids that ask a model something outside a run: one user turn, or text and a blank line for a base model.

    Args:
        opening: text that the answer starts with.
        date: YYYY-MM-DD that the chat template sees as today; None for the real date.
    """
    text = without_control(tokenizer)(question)
    if not has_chat_template(tokenizer):
        return plain_ids(tokenizer, f"{text}\n\n{opening}")
    # The answer starts with text that is given, so a thinking model does not reason before it.
    return chat_ids(
        tokenizer, ChatTemplate(tokenizer, date=date).before_answer([{"role": "user", "content": text}]) + opening
    )


def plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    ids = list(tokenizer(text)["input_ids"])
    # A tokenizer that ends every text with EOS would put it between prompt and response.
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def chat_ids(tokenizer: "PreTrainedTokenizerBase", rendered: str) -> list[int]:
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
