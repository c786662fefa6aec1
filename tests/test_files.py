"""Strict reading of JSON and YAML, and writing under temporary names."""

import os

import pytest

from sami.errors import InputError, one_line, quoted
from sami.files import cut_values, parse_json, parse_yaml, read_yaml, replacing, require_creatable

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 5000))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": 2,\n "a": 3}', "gives the key 'a' twice, in lines 1 and 2"),
        ('{"b": {"a": "{", "x": ["a"]}, "a": 1, "\\u0061": 2}', "gives the key 'a' twice, in columns 31 and 39"),
        ("[" * 5000 + "]" * 5000, "more than 100 deep"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "more than 100 deep"),
        ("9" * 5000, "integer of 5000 digits"),
        ('["\\ud800"]', "half a surrogate pair"),
        ('{"\\udc00": 1}', "half a surrogate pair"),
        ("\ud800", "is not valid UTF-8"),
        (b"\xff", "is not valid UTF-8"),
        ('"a\\u0000b"', "a NUL character"),
        ('"a\0b"', "is not valid JSON"),
        ('{"a": 1', "is not valid JSON"),
    ],
)
def test_json_that_readers_would_choke_on_or_read_differently_is_refused(text, words):
    with pytest.raises(InputError, match=words) as caught:
        parse_json(text, "Line 7 of q.jsonl")
    message = str(caught.value)
    assert message.startswith("Line 7 of q.jsonl ")
    assert len(message) < 400


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": {"b": 1}, "b": [{"a": 1}, {"a": 2}]}', {"a": {"b": 1}, "b": [{"a": 1}, {"a": 2}]}),
        ('"\\ud83d\\ude00"', "😀"),
        (b"\xef\xbb\xbf[1]", [1]),
        ("[" * 100 + "]" * 100, eval("[" * 100 + "]" * 100)),
        (f"[{','.join(['[]'] * 500)}]", [[]] * 500),
        (str(2**64), 2**64),
    ],
)
def test_ordinary_json_is_read(text, value):
    assert parse_json(text, "It") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb:\n  c: 2\na: 3", "gives the key 'a' twice, in lines 1 and 4"),
        ("x:\n- {c: 1, d: 2, c: 3}", "gives the key 'c' twice, in line 2;"),
        (BOMB, "expands to more than 100,000 values"),
        (CHAIN, "more than 100 deep"),
        ("a: &a [*a]", "refers to itself"),
        ("[" * 5000 + "]" * 5000, "more than 100 deep"),
        ("- " * 5000 + "x", "more than 100 deep"),
        ("a: " + "9" * 5000, "integer of 5000 digits in line 1"),
        ('a: "\\0"', "NUL"),
        ("a: \0", "is not valid YAML"),
        ("a: \ud800", "is not valid UTF-8"),
        ("a: " + "x" * 2_000_001, "at most 2,000,000"),
        ("!!int ''", "is not valid YAML"),
        ("!!timestamp x", "is not valid YAML"),
        ("2020-13-45", "is not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("? [a]\n: b", "is not valid YAML"),
        ("a: 1\n---\nb: 2", "is not valid YAML"),
        ("a: [1", "is not valid YAML"),
        ("*" + "x" * 5000, "is not valid YAML"),
    ],
)
def test_yaml_that_readers_would_choke_on_or_read_differently_is_refused(text, words):
    with pytest.raises(InputError, match=words) as caught:
        parse_yaml(text, "The recipe r.yaml")
    assert str(caught.value).startswith("The recipe r.yaml ")
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: *x", {"a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": {"b": 1}}),
        ("1: a\n'1': b", {1: "a", "1": "b"}),
        ('"\\U0001F600"', "😀"),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_ordinary_yaml_is_read(text, value):
    assert parse_yaml(text, "It") == value


def test_only_an_ordinary_text_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    for name, words in (("pipe", "not an ordinary file"), ("latin", "not valid UTF-8"), ("none", "cannot be read")):
        with pytest.raises(InputError, match=words):
            read_yaml(tmp_path / name, "The recipe")


def test_a_value_that_a_comment_may_have_cut_is_found():
    text = """
principles:
- definition: Rank by # of votes
  antithesis: "Never by # of votes"  # quoted, so complete
- definition: >
    Folded # text is not cut.
  antithesis: C# is fine
"""
    assert [(cut.line, cut.key, cut.value, cut.comment) for cut in cut_values(text)] == [
        (3, "definition", "Rank by", "# of votes")
    ]


def test_a_message_quotes_the_beginning_and_the_end_of_a_long_value():
    assert quoted("fast") == "'fast'"
    assert quoted("a\x1b[2J\u202e") == r"'a\x1b[2J\u202e'"
    for value in ("x" * 10**6, ["x" * 1000] * 1000, {"k" * 1000: {"l": ["x" * 1000] * 9}}, 10**5000, -(10**5000)):
        assert 10 < len(quoted(value)) < 250
    assert len(one_line("word " * 1000)) < 700


def test_a_device_is_never_replaced_by_a_file(tmp_path):
    device = tmp_path / "pipe"
    os.mkfifo(device)
    with pytest.raises(InputError, match="is a device"), replacing(device) as temporary:
        temporary.write_text("x")
    with pytest.raises(InputError, match="is a device"):
        require_creatable(device)
    assert device.is_fifo()
