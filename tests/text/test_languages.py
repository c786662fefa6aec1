"""The same facts in every language: copies are seen, words and sentences are found, English-only checks refuse."""

from typing import NamedTuple

import pytest
from pydantic import ValidationError

from sami.principles import Principle
from sami.text.degeneration import repeated_loop
from sami.text.languages import content_stem, language_of
from sami.text.leaks import leak_mask, leakage, leaked_words
from sami.text.reading import sentences
from sami.text.verifiers import (
    AllOf,
    AnyOf,
    EndsWith,
    Lexicon,
    Lines,
    ListItems,
    Negate,
    ReadingGrade,
    Rhyme,
    WordCount,
)
from sami.text.words import commonest_opening, distinct_n, joined, token_count, word_count, word_spans


class Twin(NamedTuple):
    """Two opposite principles, and a model that only restates them."""

    definition: str
    antithesis: str
    query: str
    before: str
    after: str
    ends: str = ".。।"

    def answer(self, principle: str) -> str:
        return f"{self.before}{principle.rstrip(self.ends)}{self.after}"


TWINS = {
    "en": Twin(
        "Answer in the voice of a pirate.",
        "Answer in the voice of a professor.",
        "Why is the sky blue?",
        "Of course, gladly I am going to ",
        " and this is all that you will hear from me this afternoon, my friend.",
    ),
    "zh": Twin(
        "请用海盗的口吻回答。",
        "请用教授的口吻回答。",
        "天空为什么是蓝色的？",
        "好的我现在就",
        "然后我今天就只说这么多话了。",
    ),
    "ja": Twin(
        "海賊の口調で答えてください。",
        "教授の口調で答えてください。",
        "空はなぜ青いですか？",
        "分かりました。では今から",
        "と言われたので、今日はこれだけ話します。",
    ),
    "th": Twin(
        "ตอบด้วยน้ำเสียงของโจรสลัด",
        "ตอบด้วยน้ำเสียงของศาสตราจารย์",
        "ทำไมท้องฟ้าเป็นสีฟ้า",
        "ตกลง วันนี้ฉันจะ",
        "แล้วก็จะพูดเพียงเท่านี้นะครับ ขอบคุณมาก",
    ),
    "ko": Twin(
        "해적의 말투로 대답하세요.",
        "교수의 말투로 대답하세요.",
        "하늘은 왜 파란가요?",
        "네, 알겠습니다. 지금부터 ",
        " 그리고 오늘은 여기까지만 이야기하고 싶습니다.",
    ),
    "ar": Twin(
        "أجب بصوت قرصان.",
        "أجب بصوت أستاذ.",
        "لماذا السماء زرقاء؟",
        "حسنا يا صديقي سوف ",
        " وهذا كل ما عندي اليوم من الكلام.",
    ),
    "hi": Twin(
        "समुद्री डाकू की आवाज़ में जवाब दो।",
        "प्रोफ़ेसर की आवाज़ में जवाब दो।",
        "आसमान नीला क्यों है?",
        "ठीक है दोस्त, अब मैं ",
        " और आज बस इतना ही कहूँगा, फिर मिलते हैं।",
    ),
    "ru": Twin(
        "Отвечай голосом пирата.",
        "Отвечай голосом профессора.",
        "Почему небо синее?",
        "Хорошо, дорогой друг, сейчас ",
        " и больше сегодня ничего не скажу.",
    ),
    "de": Twin(
        "Antworte mit der Stimme eines Piraten.",
        "Antworte mit der Stimme eines Professors.",
        "Warum ist der Himmel blau?",
        "Gut, lieber Freund, ich lese vor: ",
        ", und mehr sage ich heute nicht dazu.",
    ),
    "tr": Twin(
        "Bir korsanın ağzıyla cevap ver.",
        "Bir profesörün ağzıyla cevap ver.",
        "Gökyüzü neden mavi?",
        "Peki dostum, şimdi ",
        " ve bugünlük söyleyeceklerim bundan ibaret.",
    ),
}


@pytest.mark.parametrize("language", TWINS)
def test_a_copied_principle_is_seen_and_what_is_not_masked_is_the_same_under_both(language):
    twin = TWINS[language]
    constitutions = [twin.definition, twin.antithesis]
    leaked = leaked_words(constitutions, twin.query)
    rest = []
    for principle in constitutions:
        answer = twin.answer(principle)
        assert language_of(answer) == language_of(principle) == language
        assert leakage(answer, constitutions, twin.query) is not None
        mask = leak_mask(range(len(answer)), lambda ids, text=answer: "".join(text[i] for i in ids), leaked)
        assert 0 < sum(mask) <= len(mask) / 2  # over half masked would set the contrast aside
        rest.append(
            [character for character, leaks in zip(answer, mask, strict=True) if not leaks and character != " "]
        )
    assert rest[0] == rest[1]
    assert leakage(twin.before + twin.after, constitutions, twin.query) is None


@pytest.mark.parametrize("language", ["en", "zh", "ja", "th", "ko", "ar", "hi", "ru", "de", "tr"])
def test_a_sentence_in_a_loop_is_found(language):
    sentence = TWINS[language].answer(TWINS[language].definition)
    assert repeated_loop(sentence) is None
    assert repeated_loop((sentence + " ") * 5) is not None
    assert distinct_n([(sentence + " ") * 5]) < 0.8 < distinct_n([sentence])


@pytest.mark.parametrize(
    ("one", "other", "language"),
    [
        ("пираты", "пиратами", "en"),
        ("piraten", "pirat", "de"),
        ("korsanlar", "korsan", "tr"),
        ("해적의", "해적처럼", "en"),
        ("pirates", "pirate", "en"),
        ("l'ombre", "ombres", "fr"),
    ],
)
def test_forms_of_a_word_have_one_stem(one, other, language):
    assert content_stem(one, language) == content_stem(other, language) is not None


def test_words_are_compared_without_turkish_dots_optional_marks_and_width():
    for one, other in [("IŞIK", "ışık"), ("İYİ", "iyi"), ("قُرْصَان", "قرصان"), ("ｶﾞ", "ガ"), ("Ｐirate’s", "pirate's")]:
        assert [word for *_, word in word_spans(one)] == [word for *_, word in word_spans(other)]


@pytest.mark.parametrize(
    ("text", "words", "tokens"),
    [
        ("我爱北京天安门。", 4, 5),
        ("私は海賊です。", 4, 5),
        ("ท้องฟ้าเป็นสีฟ้า", 4, 4),
        ("我用Python3工作", 4, 4),
        ("𠀀𠀁海盗", 3, 3),
        ("हिन्दी भाषा, नमस्ते!", 3, 5),
        ("می‌خواهم بروم", 2, 2),
        ("해적의 말투로", 2, 2),
        ("don't 3.50", 3, 6),
    ],
)
def test_words_and_tokens_are_counted(text, words, tokens):
    assert (word_count(text), token_count(text)) == (words, tokens)
    assert all(text[start:end].strip() for start, end, _ in word_spans(text))


def test_words_are_joined_as_their_script_joins_them():
    assert joined(["我", "用", "python", "和", "c"]) == "我用 python 和 c"
    assert commonest_opening(["好的，我现在", "好的我现在说"]) == ("好的我现在", 1.0)


def test_a_language_is_recognized_by_what_speaks_for_it_most():
    assert language_of("") == language_of("1990! 🙂") == language_of("Café Paris") == "en"
    assert language_of("The word 海盗 means pirate.") == "en"
    assert language_of("su-su-su-su, ma non") == "it"
    assert language_of("Soy su-su-su-su-su-su") == "en"  # a loop votes once
    assert language_of("ⴰⵣⵓⵍ ⴰⵎⴰⵣⵉⵖ") == "und"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("下雨了。天晴了！「好吗？」", 3),
        ("هل السماء زرقاء؟ نعم هي زرقاء. لماذا؟", 3),
        ("आसमान नीला है। हवा चलती है। यह सच है।", 3),
        ("Das ist z. B. so. Am 3. Mai kam Dr. Müller. Gut.", 3),
        ("１．洗米\n２．煮饭\n３．上桌", 3),
        ("วันนี้อากาศดี เราไปเที่ยวกัน", 1),  # Thai marks no ends of sentences
    ],
)
def test_sentences_are_counted(text, count):
    assert sentences(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "１．茶\n２．奶",
        "1、茶\n2、奶",
        "（1）茶\n（2）奶",
        "1.茶\n2.奶",
        "①茶\n②奶",
        "一、茶\n二、奶",
        "١. شاي\n٢. حليب",
        "१) चाय\n२) दूध",
        "1- شاي\n2- حليب",
    ],
)
def test_numbered_lists_are_found(text):
    assert ListItems(style="numbered").passes(text)
    assert not ListItems(style="bulleted").passes(text)
    assert WordCount(max=2).passes(text)


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("هل السماء زرقاء؟", "question"),
        ("Γιατί είναι μπλε;", "question"),
        ("आसमान नीला है।", "statement"),
        ("چرا۔", "statement"),
        ("好！」", "exclamation"),
        ("然后。。。", "ellipsis"),
    ],
)
def test_the_closing_punctuation_is_known(text, suffix):
    passed = [one for one in ("question", "exclamation", "statement", "ellipsis") if EndsWith(suffix=one).passes(text)]
    assert passed == [suffix]


def test_a_semicolon_ends_no_question_outside_greek():
    assert not EndsWith(suffix="question").passes("It is blue;")


@pytest.mark.parametrize(
    ("text", "entry", "found"),
    [
        ("我是一个海盗船长。", "海盗", True),
        ("나는 해적이다.", "해적", True),
        ("나는 대해적.", "해적", False),
        ("ISTANBUL'DA IŞIK", "ışık", True),
        ("नीला", "नील", False),
        ("Пираты идут", "пираты", True),
    ],
)
def test_the_lexicon_finds_entries_in_running_text(text, entry, found):
    assert Lexicon(words=[entry], min_count=1).passes(text) is found


@pytest.mark.parametrize("language", [language for language in TWINS if language != "en"])
def test_checks_that_know_english_only_pass_no_other_language(language):
    text = TWINS[language].answer(TWINS[language].definition)
    grade, rhyme = ReadingGrade(max=1000), Rhyme(min_share=0.01)
    for check in (grade, rhyme, Negate(spec=rhyme), AllOf(specs=[grade]), AnyOf(specs=[Lines(min_lines=1), grade])):
        assert not check.passes(text)
        assert check.english_checks()
    assert Negate(spec=rhyme).passes("The cat sat on the mat.")
    assert Negate(spec=Lines(min_lines=2)).english_checks() == set()


def test_a_principle_in_another_language_cannot_have_a_check_that_knows_english_only():
    texts = {"id": "child", "definition": "请像对孩子一样解释。", "antithesis": "请像对专家一样解释。"}
    with pytest.raises(ValidationError, match="reading_grade knows English only"):
        Principle.model_validate({**texts, "verifier": {"check": "reading_grade", "max": 7}})
    Principle.model_validate({**texts, "verifier": {"check": "word_count", "max": 7}})
