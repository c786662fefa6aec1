"""Constitution leakage, on a byte-level BPE tokenizer trained on the spot."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sami.text.leaks import LeakedWords, content_words, leak_mask, leakage, leaked_words
from sami.text.words import word_spans

CHILD = "1. Answers should be simple, clear, and concise, as if for a child."
EXPERT = "1. Answers should be technical and precise, as if for an expert."
QUERY = "Why does a boat float? Give a clear reason."
CORPUS = ["the pirate sails the sea", "pirates piracy a naïve été élan, the captain", "日本語の船 été пират"] * 20

Encode = Callable[[str], list[int]]
Decode = Callable[[Sequence[int]], str]


@pytest.fixture(scope="module", params=[270, 320], ids=["near bytes", "with merges"])
def tokenizer(request) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=request.param,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture
def encode(tokenizer) -> Encode:
    return lambda text: tokenizer.encode(text).ids


@pytest.fixture
def decode(tokenizer) -> Decode:
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def mask_from_bytes(tokenizer: Tokenizer, ids: Sequence[int], leaked: set[str]) -> list[bool]:
    """The same by another route: the place of each token in the UTF-8 bytes, by its own spelling."""
    text = tokenizer.decode(list(ids))
    flags = [
        b"\x01" * len(text[a:b].encode()) if content_words(text[a:b]) & leaked else b"\x00" * len(text[a:b].encode())
        for a, b in pieces(text)
    ]
    in_leak = b"".join(flags)
    mask, place = [], 0
    for token in ids:
        size = 0 if token == 0 else len(tokenizer.id_to_token(token) or "")  # one character a byte; 0 is <eos>
        mask.append(any(in_leak[place : place + size]))
        place += size
    assert place == len(in_leak)
    return mask


def pieces(text: str) -> list[tuple[int, int]]:
    """Words and what stands between them, in order."""
    edges = [0]
    for start, end, _ in word_spans(text):
        edges += [start, end]
    edges.append(len(text))
    return [(a, b) for a, b in pairwise(edges) if a < b]


def test_content_words_are_stems_without_function_words_and_single_letters():
    assert content_words("1. The PIRATES shouldn't be rhyming, as if you’re a pirate") == {"pirat", "rhyme"}
    assert content_words("") == set()
    assert content_words("a I 7 x") == set()
    assert content_words("ｐｉｒａｔｅ, Ｐirate’s") == {"pirat"}
    assert content_words("naïve") == content_words("NAI\u0308VE") != set()


def test_words_of_the_query_are_not_leaked():
    leaked = leaked_words([CHILD, EXPERT], QUERY)
    assert {"child", "expert", "concis", "technic"} <= leaked
    assert "clear" not in leaked
    assert leaked_words([], QUERY) == set()


def test_tokens_of_leaked_words_are_masked_and_no_others(encode, decode):
    parts = [("The", False), (" pirate", True), ("'s", True), (" sea", False), (", ", False), ("Pirates", True)]
    ids, expected = [], []
    for text, leaks in parts:
        ids += encode(text)
        expected += [leaks] * len(encode(text))
    mask = leak_mask(ids, decode, LeakedWords({"pirat"}))
    assert mask == expected
    assert any(mask)
    assert not all(mask)


def test_eos_is_never_leaked_even_next_to_a_leaked_word(encode, decode):
    ids = encode("pirate")
    assert leak_mask([*ids, 0], decode, LeakedWords({"pirat"})) == [True] * len(ids) + [False]
    assert leak_mask([*ids[:1], 0, *ids[1:]], decode, LeakedWords({"pirat"})) == [True, False] + [True] * (len(ids) - 1)
    assert leak_mask([0], decode, LeakedWords({"pirat"})) == [False]
    assert leak_mask([], decode, LeakedWords({"pirat"})) == []
    assert leak_mask(ids, decode, LeakedWords()) == [False] * len(ids)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Un été naïve 🏴‍☠️ pirate été!", "été"),
        ("🏴‍☠️🏴‍☠️ pirate 🏴‍☠️ pirates, sea", "pirates"),
        ("the пират sea пират", "пират"),
        ("日本語の船, pirate. 日本語の船", "日本語の船"),
        ("nai\u0308ve sea nai\u0308ve", "naïve"),
        ("naïve", "naïve"),
        ("plain pirate sea", "pirate"),
        ("a genuine \ufffd\ufffd and a pirate \ufffd", "pirate"),
    ],
)
def test_characters_split_over_tokens_keep_their_place(tokenizer, encode, decode, text, word):
    ids = [*encode(text), 0]
    leaked = content_words(word)
    expected = mask_from_bytes(tokenizer, ids, leaked)
    assert any(expected)
    assert leak_mask(ids, decode, LeakedWords(leaked)) == expected


def test_a_token_that_shares_one_byte_with_a_leaked_word_is_masked():
    vocabulary = [b"sea", b" \xc3", b"\xa9t\xc3", b"\xa9!", b" sea"]  # "sea été! sea", cut inside both é

    def decode(ids):
        return b"".join(vocabulary[i] for i in ids).decode(errors="replace")

    assert leak_mask([0, 1, 2, 3, 4], decode, LeakedWords(content_words("été"))) == [False, True, True, True, False]
    assert leak_mask([0, 1, 2, 3, 4], decode, LeakedWords({"sea"})) == [True, False, False, False, True]


def test_a_response_cut_inside_a_character_is_masked_up_to_it(encode, decode):
    ids = encode("pirate") + encode("🎉")[:2]
    mask = leak_mask(ids, decode, LeakedWords({"pirat"}))
    assert mask == [True] * len(encode("pirate")) + [False, False]


def test_a_decoder_that_drops_the_first_blank_is_followed():
    vocabulary = ["▁the", "▁pir", "ate", "▁sea"]  # sentencepiece style

    def decode(ids):
        return "".join(vocabulary[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert leak_mask([0, 1, 2, 3], decode, LeakedWords({"pirat"})) == [False, True, True, False]
    assert leak_mask([1, 2, 3], decode, LeakedWords({"pirat"})) == [True, True, False]


def test_a_copied_run_of_the_constitution_is_a_leak():
    response = "Please provide a simple, clear, and concise answer."
    assert leakage(response, [EXPERT, CHILD], QUERY) == "simple clear and concise"
    assert leakage(response, ["Please provide a simple, clear, and concise answer."], QUERY) == (
        "please provide a simple"
    )
    assert leakage(response, [EXPERT], QUERY) is None


def test_a_pirate_verse_copies_nothing_though_its_words_leak():
    pirate = ["1. Answers should sound as if a pirate wrote them, with sea slang."]
    verse = "Arrr, me name be Captain Blackwood, a pirate of the sea, as if ye did not know!"
    assert leakage(verse, pirate, QUERY) is None
    assert leaked_words(pirate, QUERY) & content_words(verse) == {"pirat", "sea"}


def test_runs_of_the_query_and_of_function_words_are_no_leaks():
    constitution = ["Give a clear reason, as if you were a child."]
    assert leakage("I give a clear reason.", constitution, "") == "give a clear reason"
    assert leakage("I give a clear reason.", constitution, QUERY) is None
    assert leakage("It is as if you were a king.", constitution, "") is None
    assert leakage("It is as if you were a child.", constitution, "") == "you were a child"


def test_a_run_does_not_go_from_one_constitution_into_the_next():
    assert leakage("Be brief be kind", ["Be brief", "Be kind"], "") is None
    assert leakage("Be brief be kind", ["Be brief. Be kind."], "") == "be brief be kind"


def test_leakage_of_unicode_and_empty_text():
    assert leakage("", [CHILD], QUERY) is None
    assert leakage("anything at all goes", [], QUERY) is None
    assert leakage("ＦＯＲ a NAI\u0308VE reader now", ["for a naïve reader"], "") == "for a naïve reader"
    assert leakage("a word", [CHILD], QUERY, n=1) is None
    assert leakage("a child", [CHILD], QUERY, n=1) == "child"
    with pytest.raises(ValueError, match="not 0"):
        leakage("x", [CHILD], QUERY, n=0)
