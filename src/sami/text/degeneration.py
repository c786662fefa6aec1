"""Signs of an unhealthy model in the text of one response: loops and leftovers of a prompt template.

A model that is trained too long on its own responses degenerates into code words ("Expert:Expert:Expert:…") or
pieces of its prompt ("Question:… Answer:…") while its own information bound rises. These checks need neither a model
nor a tokenizer.
"""

import operator
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import regex

from sami.text.words import word_spans

_LONGEST_PHRASE = 50  # words
_LONGEST_PASSAGE = 20  # sentences
_LONGEST_GLUED = 24  # characters
_LINE = 100  # characters: ruled lines and numbers of healthy texts are shorter
_RULE = frozenset("-=_*~.#+|:·•—–─━═…0123456789")


def repeated_loop(
    text: str,
    *,
    phrase_times: int = 4,
    interjection_times: int = 8,
    sentence_times: int = 3,
    run_times: int = 20,
) -> str | None:
    """The first unit that the text repeats in a loop, as the text spells it; None for a healthy text.

    Kinds of loop, in the order in which they are searched:

    1. A word or a phrase of up to 50 words, `phrase_times` in a row, ignoring the punctuation between the copies.
       Units of at most three letters ("ha", "no") need `interjection_times`, numbers `run_times`.
    2. A sentence or line of at least four words, or a passage of up to 20 sentences, `sentence_times` in a
       row; a shorter one needs as many as a phrase. Item numbers and bullets are ignored.
    3. Sentences of at least four words that occur `sentence_times` or more, anywhere, and together make up over
       half of the words. Refrains stay below: a villanelle, the densest form in common use, repeats 8 lines
       of 19.
    4. Characters: units of at least four letters without spaces, `phrase_times` in a row, others (a letter,
       an emoji, an exclamation mark) `run_times`. Rules, spaces and digits also need over 100 characters.

    Repetition is exact up to case, width and punctuation. The time is linear in the length of the text.

    Raises:
        ValueError: a number of repeats is below 2.
    """
    if min(phrase_times, interjection_times, sentence_times, run_times) < 2:
        raise ValueError("A unit that occurs once is not repeated, so every number of times must be 2 or more.")

    def phrase_loops(words: Sequence[str], times: int) -> bool:
        letters = sum(map(_letters, words))
        return times >= (phrase_times if letters > 3 else interjection_times if letters else run_times)

    def sentence_loops(sentences: Sequence[tuple[str, ...]], times: int) -> bool:
        words = [word for sentence in sentences for word in sentence]
        return (len(words) >= 4 and times >= sentence_times) or phrase_loops(words, times)

    spans = list(word_spans(text))
    words = [word for _, _, word in spans]
    for start, period, times in _periodic(words, _LONGEST_PHRASE, phrase_times):
        if phrase_loops(words[start : start + period], times):
            return text[spans[start][0] : spans[start + period - 1][1]]
    written, sentences = _sentences(text)
    for start, period, times in _periodic(sentences, _LONGEST_PASSAGE, min(sentence_times, phrase_times)):
        if sentence_loops(sentences[start : start + period], times):
            return " ".join(written[start : start + period])
    counts = Counter(sentences)
    often = {one for one, count in counts.items() if count >= sentence_times and len(one) >= 4}
    if 2 * sum(len(one) * counts[one] for one in often) > len(words):
        return next(line for line, one in zip(written, sentences, strict=True) if one in often)
    return _repeated_characters(text, phrase_times, run_times)


def _periodic(sequence: Sequence[Hashable], longest: int, times: int) -> Iterator[tuple[int, int, int]]:
    """(start, period, times) of each stretch that repeats a unit, shorter periods first.

    For speed, `map` compares each item with the one a period earlier, and a regular expression finds runs of equals.
    """
    for period in range(1, min(longest, len(sequence) // times) + 1):
        same = bytes(map(operator.eq, sequence[period:], sequence))
        for run in re.finditer(rb"\x01{%d,}" % (period * (times - 1)), same):
            unit = sequence[run.start() : run.start() + period]
            if not _is_power(unit):
                yield run.start(), period, (run.end() - run.start()) // period + 1


_SYLLABLES = regex.compile(r"[\p{Han}\p{Hangul}]")


def _letters(word: str) -> int:
    """Letters of a word; an ideograph or a syllable of Hangul counts as two, once however often it occurs."""
    syllables = _SYLLABLES.findall(word)
    return sum(map(str.isalpha, word)) - len(syllables) + 2 * len(set(syllables))


def _is_power(unit: Sequence[Hashable]) -> bool:
    """Whether the unit is itself a shorter unit repeated; such stretches were found with the shorter one."""
    size = len(unit)
    return any(size % part == 0 and unit[part:] == unit[:-part] for part in range(1, size // 2 + 1))


# Stops of scripts without spaces end a sentence by themselves, others before a space.
_SENTENCE_END = regex.compile(
    r"\n+|(?<=[\p{Sentence_Terminal}…])[\"'”’)*]*\s+|(?<=[\p{Sentence_Terminal}&&[\p{East_Asian_Width=W}\p{East_Asian_Width=F}]])",
    regex.V1,
)
_ITEM = regex.compile(r"\A\W*\p{Nd}{1,3}(?:[.):\]]\s|[．、）：])")


def _sentences(text: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """Sentences and lines as written, without item numbers, and the words of each."""
    written: list[str] = []
    sentences: list[tuple[str, ...]] = []
    for piece in _SENTENCE_END.split(text):
        sentence = _ITEM.sub("", piece).strip()
        words = tuple(word for _, _, word in word_spans(sentence))
        if any(not word.isdigit() for word in words):  # "1." is an item's number, not a sentence
            written.append(sentence)
            sentences.append(words)
    return written, sentences


def _repeated_characters(text: str, glued_times: int, run_times: int) -> str | None:
    for start, period, times in _periodic(text, _LONGEST_GLUED, min(glued_times, run_times)):
        unit = text[start : start + period]
        if all(character in _RULE or character.isspace() for character in unit):
            loops = times >= run_times and times * period > _LINE
        elif sum(character.isalpha() for character in unit) >= 4 and unit.split() == [unit]:
            loops = times >= glued_times
        else:
            loops = times >= run_times
        if loops:
            return unit
    return None


# Labels that occur in prompts and not in answers. "Instructions:" (recipes), "Output:" (code) and "Q:" (jokes) are
# left out on purpose.
_LABEL = (
    r"(?:Question|Answer|Human|Assistant|User|System|Constitution|Response|Query|Instruction|Prompt)"
    r"(?:[ ]\d{1,3})?"  # the space is in brackets because the pattern below is verbose
)
_LEFTOVER = re.compile(
    rf"""
      ^[ \t>*_-]*(?:
          (?P<label>{_LABEL}[*_]{{0,2}}[ \t]?[:：])          # Human:   **Question:**   Answer 2:
        | (?P<rule>\#{{3,}}[ \t]*(?:(?:{_LABEL}|Input)[ \t]*(?:[:：]|$)|$))
      )
    | (?P<token>
          <\|(?:[^|\n]{{0,40}}\|>)?                          # <|im_end|>, or a piece of one
        | \[/?INST\] | <</?SYS>> | </s> | <(?:start|end)_of_turn>
        | \[(?:[Ii]nsert|INSERT)\b[^]\n]{{0,40}}\]?
        | \{{[ ]?(?:query|question|constitution|principles?|response|answer)[ ]?\}}
      )
    """,
    re.MULTILINE | re.VERBOSE,
)


def template_leftover(text: str) -> str | None:
    """The first leftover of a prompt template in the text, quoted; None if there is none.

    At the start of a line, also after bullets, emphasis or quotation marks: a label such as "Question:",
    "Answer 2:", "Human:" or "Constitution:" in exactly this case, and "###" alone or before such a label.
    Anywhere: the text of special tokens ("<|…|>", "[INST]", "</s>") and placeholders ("[insert …]", "{query}"). A
    markdown heading ("### Ingredients"), a label inside a line and other brackets ("[25 F]") are ordinary text.
    """
    match = _LEFTOVER.search(text)
    if match is None:
        return None
    return str(match["label"] or match["rule"] or match["token"]).strip()
