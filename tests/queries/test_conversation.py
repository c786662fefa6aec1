"""A conversation as messages, as text, and as what it continues to."""

import pytest

from sami.queries import Conversation, Turn
from sami.queries.conversation import as_asked, as_conversation, messages_of

TALK = Conversation((Turn("user", "Why?"), Turn("assistant", "So.")), "And?", "Be kind.")
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "And?"},
]


def test_messages_and_text_hold_every_turn_in_its_order():
    assert TALK.messages == messages_of(TALK) == MESSAGES
    assert [Conversation.of(MESSAGES[start:]) for start in (0, 3)] == [TALK, Conversation((), "And?")]
    assert str(TALK) == "System: Be kind.\n\nUser: Why?\n\nAssistant: So.\n\nUser: And?"


def test_plain_text_is_a_conversation_of_one_turn_and_back():
    assert as_asked(as_conversation("And?")) == str(as_conversation("And?")) == "And?"
    assert messages_of("And?") == []
    assert as_asked(as_conversation(TALK)) is TALK
    assert str(Conversation((), "And?", "Be kind.")) == "System: Be kind.\n\nUser: And?"


def test_an_answer_and_the_next_question_continue_a_conversation():
    assert as_conversation("Why?").followed_by("So.", "And?") == Conversation(TALK.earlier, "And?")
    assert TALK.followed_by("No.", "Oh?").messages[3:] == [
        MESSAGES[3],
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Oh?"},
    ]


@pytest.mark.parametrize("messages", [[], MESSAGES[:1], MESSAGES[:3], [MESSAGES[3], MESSAGES[0], MESSAGES[3]]])
def test_other_turns_are_an_error(messages):
    with pytest.raises(ValueError, match="cannot have the turns"):
        Conversation.of(messages)
