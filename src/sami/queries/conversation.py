"""A conversation that a model is to continue, and what code that needs text sees of it.

    asked = Conversation((Turn("user", "Is tea healthy?"), Turn("assistant", "It is.")), "And coffee?", "Be kind.")
    str(asked)  # "System: Be kind.\n\nUser: Is tea healthy?\n\nAssistant: It is.\n\nUser: And coffee?"

A query without earlier turns and without a system turn of its own is a plain string, so that `str(asked)` is the text
of either kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Message = dict[str, str]
"""A turn as chat templates take it: `role` and `content`."""


@dataclass(frozen=True)
class Turn:
    """A turn before the one to answer."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True)
class Conversation:
    """A user turn to answer, after earlier turns and an optional system turn."""

    earlier: tuple[Turn, ...]
    last: str
    """The user turn to answer."""
    system: str | None = None

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, str]]) -> "Conversation":
        """The conversation of messages whose roles are `system` (first, optional), `user` and `assistant`.

        Raises:
            ValueError: a system turn that is not the first one, an unknown role, or a last turn that is not a user's.
        """
        opens = bool(messages) and messages[0]["role"] == "system"
        *earlier, last = messages[opens:] or [{"role": ""}]
        if last["role"] != "user" or any(m["role"] not in ("user", "assistant") for m in earlier):
            raise ValueError(f"a conversation to answer cannot have the turns {[m['role'] for m in messages]}")
        turns = (Turn("user" if m["role"] == "user" else "assistant", m["content"]) for m in earlier)
        return cls(tuple(turns), last["content"], messages[0]["content"] if opens else None)

    @property
    def messages(self) -> list[Message]:
        """All turns, the one to answer last."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        earlier = [{"role": turn.role, "content": turn.content} for turn in self.earlier]
        return [*system, *earlier, {"role": "user", "content": self.last}]

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but the turn to answer."""
        return not self.earlier and self.system is None

    def followed_by(self, answer: str, query: str) -> "Conversation":
        """The conversation that an answer and another user turn make of this one."""
        turns = (*self.earlier, Turn("user", self.last), Turn("assistant", answer))
        return Conversation(turns, query, self.system)

    def __str__(self) -> str:
        """The text for people and judges: each turn after its role."""
        return (
            self.last
            if self.is_plain
            else "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in self.messages)
        )


Asked = str | Conversation
"""What a model is asked: plain text, or a conversation to continue."""


def as_conversation(asked: Asked) -> Conversation:
    return Conversation((), asked) if isinstance(asked, str) else asked


def as_asked(conversation: Conversation) -> Asked:
    """The plain string of a conversation that has nothing but the turn to answer."""
    return conversation.last if conversation.is_plain else conversation


def messages_of(asked: Asked) -> list[Message]:
    """The turns of a conversation; none for plain text, which records keep as text alone."""
    return [] if isinstance(asked, str) else asked.messages
