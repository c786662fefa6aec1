"""Languages: which one a text is in, the stem of a word, and the words that carry no meaning by themselves.

Words of a script that only a few languages share are treated alike wherever they occur. Latin letters are shared
by hundreds of languages, so their words are treated by the language of the text around them. A text whose
language is not recognized is treated as English.
"""

from collections import Counter
from functools import cache, lru_cache
from typing import Protocol

import regex

from sami.text.words import fold, word_spans

ENGLISH = "en"

# Languages in which endings and prefixes do the work of English articles and prepositions: three words of theirs say
# about what four say in English.
SYNTHETIC = frozenset({"ar", "he", "hy", "ko", "pl", "ru", "ta", "tr"})

# Closed classes: determiners, pronouns, prepositions, conjunctions, auxiliaries, question words, adverbs of degree.
_FUNCTION_WORDS = {
    "en": """
    a an the this that these those some any each every either neither both all no none another other others such
    same own much many more most few fewer less least several enough one ones i me my mine myself we us our ours
    ourselves you your yours yourself yourselves he him his himself she her hers herself it its itself they them
    their theirs themselves somebody someone something anybody anyone anything everybody everyone everything nobody
    nothing who whom whose which what when where why how whoever whatever whichever whenever wherever however about
    above across after against along amid among around as at before behind below beneath beside besides between
    beyond by despite down during except for from in inside into like near of off on onto out outside over per since
    than through throughout to toward towards under until unto up upon via with within without and but or nor so yet
    if unless because although though while whereas whether once then else also too am is are was were be been being
    do does did doing done have has had having will would shall should can could may might must ought cannot let
    lets not never very just only even quite rather really still already again ever always often here there now thus
    therefore hence indeed perhaps maybe well yes please
    """,
    "de": """
    der die das den dem des ein eine einen einem einer eines kein keine keinen keiner ich du er sie es wir ihr mich
    dich sich uns euch mir dir ihm ihn ihnen mein meine dein deine sein seine unser unsere euer eure ihre ihrem
    ihren dieser diese dieses diesem diesen jeder jede jedes alle alles man und oder aber denn sondern wenn weil
    dass ob als wie wo was wer wann warum so auch nur noch schon sehr nicht ja nein in im an am auf aus bei beim mit
    nach von vom zu zum zur für über unter vor durch gegen ohne um bis ist sind war waren bin bist hat haben habe
    hatte wird werden wurde kann können soll sollen muss müssen will wollen darf dann da hier bitte
    """,
    "fr": """
    le la les l un une des du de d au aux ce cet cette ces mon ma mes ton ta tes son sa ses notre nos votre vos leur
    leurs je j tu il elle on nous vous ils elles me m te t se s lui y en et ou mais donc or ni car que qu qui quoi
    dont où quand comment pourquoi comme si dans sur sous avec sans pour par chez entre vers est sont était être
    suis es sommes êtes a ai as avons avez ont avoir ne n pas plus très aussi même tout toute tous toutes
    """,
    "es": """
    el la los las lo un una unos unas de del al a y e o u pero sino que quien cual cuando donde como por para con
    sin sobre entre desde hasta en su sus mi mis tu tus yo tú él ella nosotros ellos ellas usted ustedes me te se
    nos le les este esta estos estas ese esa eso esto es son era ser está están hay ha han no sí muy más también ya
    si porque
    """,
    "it": """
    il lo la i gli le l un uno una di del della dello dei delle degli a al alla ai da dal dalla in nel nella su sul
    con per tra fra e o ma che chi cui come quando dove perché se non più molto anche io tu lui lei noi voi loro mi
    ti si ci vi mio mia tuo suo sua questo questa questi queste è sono era essere ho hai ha hanno
    """,
    "pt": """
    o a os as um uma uns umas de do da dos das em no na nos nas por pelo pela para com sem sobre entre e ou mas que
    quem quando onde como se não sim mais muito também eu tu ele ela nós vocês eles elas você me te lhe meu minha
    seu sua este esta esse essa isso isto é são era ser está estão foi tem têm há ao à
    """,
    "nl": """
    de het een en of maar want dat die dit deze ik jij je hij zij ze wij we jullie u mij me jou hem haar ons hun
    mijn jouw zijn onze niet geen wel ook nog al zo als dan toen om te in op aan van voor met bij naar uit over
    onder door tegen zonder tot is was waren ben bent heb hebt heeft hebben had wordt worden kan kunnen zal zullen
    moet wat wie waar wanneer hoe waarom er
    """,
    "sv": """
    en ett den det de som och eller men att jag du han hon vi ni dem mig dig sig oss er min din sin vår deras denna
    detta dessa inte är var vara har hade ska kan vill med på i av för från till om under över mellan utan så också
    mycket när där hur vad vem varför
    """,
    "pl": """
    i a o w z na do od po za przez przy dla bez pod nad przed się nie tak to ten ta te tego tej tym jest są był być
    jak jako co kto gdzie kiedy że ale lub oraz czy ja ty on ona ono my wy oni mnie cię go jej ich mój twój jego
    """,
    "tr": """
    bir ve veya ya da de ile için gibi kadar ama fakat çünkü ki mi mı mu mü bu şu o bunu şunu onu ben sen biz siz
    onlar bana sana ona bize size benim senin onun bizim sizin ne nasıl neden niçin nerede kim hangi her hiç çok
    daha en değil var yok ise olarak olan olur oldu sonra önce göre
    """,
    "ru": """
    и в во не что он на я с со как а то все она так его но да ты к у же вы за бы по только ее её мне было вот от
    меня еще ещё нет о об из ему когда даже ну ли если уже или ни быть был была были него до вас вам им их нас они
    тут где есть для мы тебя чем сам без чего себя под будет кто этот эта это эти того этого какой ей при над про
    это мой твой свой наш ваш
    """,
    "ar": """
    من في على إلى الى عن مع هذا هذه ذلك تلك التي الذي الذين هو هي هم هن أنا انا نحن أنت انت أنتم كان كانت يكون قد
    لقد لا لم لن ما ماذا متى أين اين كيف لماذا هل أو او ثم بل لكن إن ان أن كل بعض غير بين عند منذ حتى إذا اذا كما و
    ف ب ل ك
    """,
    "hi": """
    का के की को में से पर है हैं था थे थी हो होता होती होते और या लेकिन कि जो यह वह ये वे इस उस इन उन मैं हम तुम आप
    मेरा हमारा आपका उसका इसका क्या क्यों कैसे कब कहाँ कौन नहीं न भी ही तो ने कर करके लिए तक साथ एक कुछ सब
    """,
    "ko": """
    그 이 저 것 수 등 및 또는 그리고 그러나 하지만 그래서 또 더 매우 아주 나 너 우리 저희 당신 그는 그녀 무엇 누구
    언제 어디 왜 어떻게 이것 그것 저것 있는 있다 없는 한 할 하는 된 되는 대한 위해
    """,
    "zh": """
    的 了 是 在 和 与 與 及 或 也 都 就 而 但 但是 不 没 沒 有 没有 要 会 會 能 可 可以 请 請 把 被 让 讓 给 給 对
    對 从 從 向 到 为 為 以 因为 因為 所以 如果 这 這 那 这个 這個 那个 那個 我 你 您 他 她 它 我们 我們 你们 你們
    他们 他們 之 其 将 將 着 著 过 過 吗 嗎 呢 吧 啊 呀 很 太 还 還 又 再 并 並 且 并且 于 於 用 地 得 所 一 个 個
    一个 一個 些 一些 什么 什麼 怎么 怎麼 谁 誰 哪 哪里 几 幾 自己 然后 然後 现在 現在 应该 應該
    """,
    "ja": """
    の は が を に へ で と も や か から まで より ね よ な だ です ます た て し する した して くだ さい いる ある
    ない など これ それ あれ この その あの ここ そこ 私 僕 あなた 彼 彼女 何 誰 いつ どこ なぜ どう ください
    という こと
    もの ため よう さん お ご
    """,
    "th": """
    ที่ ของ และ หรือ แต่ ใน บน จาก ถึง กับ แก่ ด้วย โดย เพื่อ เป็น คือ มี ไม่ ได้ ให้ จะ กำลัง แล้ว ก็ นี้ นั้น ฉัน
    ผม เรา คุณ เขา เธอ มัน ซึ่ง ว่า เพราะ ถ้า เมื่อ อย่าง อะไร ทำไม ใคร ไหน ครับ ค่ะ คะ นะ ต้อง ควร ไป มา อยู่ การ
    ความ
    """,
}
FUNCTION_WORDS = {
    language: frozenset(fold(word) for word in words.split()) for language, words in _FUNCTION_WORDS.items()
}

# Letters that English does without: a word with one of them is a vote for these languages.
_LETTERS = {"de": "äöüß", "fr": "éèêàçœ", "es": "ñáó", "pt": "ãõçá", "sv": "åäö", "pl": "ąęłśżź", "tr": "ğşçöü"}

_SCRIPTS = {
    "Latin": ENGLISH,
    "Han": "zh",
    "Hiragana": "ja",
    "Katakana": "ja",
    "Hangul": "ko",
    "Thai": "th",
    "Arabic": "ar",
    "Devanagari": "hi",
    "Cyrillic": "ru",
    "Greek": "el",
    "Hebrew": "he",
    "Armenian": "hy",
    "Tamil": "ta",
}
_SCRIPT = regex.compile("|".join(rf"(?P<{script}>\p{{{script}}})" for script in _SCRIPTS))
_KANA = ("Hiragana", "Katakana")

_STEMMERS = {
    "en": "english",
    "de": "german",
    "fr": "french",
    "es": "spanish",
    "it": "italian",
    "pt": "portuguese",
    "nl": "dutch",
    "sv": "swedish",
    "pl": "polish",
    "tr": "turkish",
    "ru": "russian",
    "ar": "arabic",
    "hi": "hindi",
    "el": "greek",
    "hy": "armenian",
    "ta": "tamil",
}
# Particles that Korean glues to a noun of at least two syllables.
_KOREAN_PARTICLE = regex.compile(
    "(?<=..)(?:에서는|으로는|이라고|입니다|이에요|에서|에게|한테|으로|처럼|까지|부터|보다|라고|하고|이다|은|는|이|가|을|를|의|에|로|와|과|도|만|야)$"
)


def language_of(text: str) -> str:
    """The ISO 639-1 code of a text's language: by its commonest script, and by function words in Latin letters.

    Returns:
        "en" where nothing speaks for another language, "und" for a script that has no entry in `_SCRIPTS`.
    """
    if text.isascii():
        return _latin_language(text)
    scripts = Counter(script_of(letter) for letter in text if letter.isalpha())
    kana = sum(scripts[script] for script in _KANA)
    if 10 * kana >= scripts["Han"] and kana:  # Japanese is written in kana and Han, Chinese in Han alone
        scripts["Hiragana"] = scripts.pop("Han", 0) + kana
    commonest = max(scripts, key=lambda script: scripts[script], default="Latin")
    return _latin_language(text) if commonest == "Latin" else _SCRIPTS.get(commonest, "und")


@lru_cache(maxsize=65536)
def script_of(letter: str) -> str:
    """The Unicode name of a letter's script; "" for one that has no entry in `_SCRIPTS`."""
    if letter.isascii():
        return "Latin"
    found = _SCRIPT.match(letter)
    return str(found.lastgroup) if found else ""


def _latin_language(text: str) -> str:
    words = {word for _, _, word in word_spans(text)}  # each votes once, so that a loop does not decide
    votes = Counter(language for word in words for language in _votes(word))
    best = max(votes, key=lambda language: votes[language], default=ENGLISH)
    return best if votes[best] >= 2 and votes[best] > votes[ENGLISH] else ENGLISH


@lru_cache(maxsize=65536)
def _votes(word: str) -> frozenset[str]:
    """The languages that a word speaks for."""
    parts = {word, word.partition("'")[0]}
    by_word = {language for language, words in FUNCTION_WORDS.items() if parts & words}
    by_letter = set() if word.isascii() else {language for language, own in _LETTERS.items() if set(own) & set(word)}
    return frozenset(by_word | by_letter)


@lru_cache(maxsize=65536)
def content_stem(word: str, language: str = ENGLISH) -> str | None:
    """The stem (Snowball) of a word of `word_spans`; None for one that carries no meaning by itself.

    Function words carry none, nor does a single letter or digit, unless it is an ideograph or a syllable of Hangul.
    Languages without a stemmer here keep their words whole.

    Args:
        language: that of the text, which decides about words in Latin letters.
    """
    script = script_of(word[0])
    language = language if script == "Latin" else _SCRIPTS.get(script, "und")
    if language == "en" and (word.endswith("n't") or word.partition("'")[0] in FUNCTION_WORDS["en"]):
        return None
    elif language in ("fr", "it"):
        word = word.rpartition("'")[2]  # "l'ami"
    elif language == "tr":
        word = word.partition("'")[0]  # "İstanbul'da"
    elif language in ("zh", "th"):
        word = _without_glued_function_words(word, FUNCTION_WORDS[language])
    if not word or word in FUNCTION_WORDS.get(language, ()) or (language == "zh" and word in FUNCTION_WORDS["ja"]):
        return None
    if len(word) < 2 and script not in ("Han", "Hangul"):
        return None
    if language == "ko":
        return _KOREAN_PARTICLE.sub("", word)
    return _stemmer(language).stemWord(word) if language in _STEMMERS else word


def _without_glued_function_words(word: str, function_words: frozenset[str]) -> str:
    """A word without function words that a dictionary left on it ("请用", "ของโจร"); "" if it is made of them.

    At least two characters of any other word remain.
    """
    for size in range(len(word) - 1, 0, -1):
        for glued, rest in ((word[:size], word[size:]), (word[-size:], word[:-size])):
            if glued in function_words and (len(rest) > 1 or rest in function_words):
                return "" if rest in function_words else _without_glued_function_words(rest, function_words)
    return word


class _Stemmer(Protocol):
    def stemWord(self, word: str) -> str: ...


@cache
def _stemmer(language: str) -> _Stemmer:
    import snowballstemmer

    stemmer: _Stemmer = snowballstemmer.stemmer(_STEMMERS[language])
    return stemmer
