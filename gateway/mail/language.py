"""The language of a text, as far as script and commonest words give it away; none rather than a doubtful one."""

import re

_SAMPLE_CHARS = 500
_MIN_SHARE = 0.3  # of the letters, for a script; Chinese business mail is full of Latin words and numbers

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]+")
_HANGUL = re.compile("[\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]+")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]+")
_NOT_TEXT = re.compile(r"https?://\S+|(?<!\S)[^\s@]+@\S+|www\.\S+", re.ASCII)
# Scripts that one language has to itself, and letters that tell the others.
_SCRIPTS = (
    ("th", re.compile("[\u0e01-\u0e5b]+")),
    ("he", re.compile("[\u05d0-\u05ea]+")),
    ("el", re.compile("[\u0386-\u03ce]+")),
)
_CYRILLIC = re.compile("[\u0400-\u04ff]+")
_ARABIC = re.compile("[\u0620-\u064a\u0671-\u06d3]+")
_RUSSIAN, _UKRAINIAN, _NOT_ARABIC = re.compile("[ыэъё]", re.I), re.compile("[іїєґ]", re.I), re.compile("[پچژگکی]")
_WORD = re.compile("[a-z\u00df-\u024f]+")
_COMMON = {
    tag: frozenset(words.split())
    for tag, words in (
        ("en", "the and you to of is for my have not that with it this please i we our your on in are be was"),
        ("de", "der die das und ist nicht ich sie mit für ein eine zu den wir auf bitte habe dem im von noch"),
        ("fr", "le les des et est pas je vous une pour dans nous la que du ma mon merci avec ce sur votre"),
        ("es", "el los las y es no por una para con que mi su del se gracias he lo al como pero tengo"),
        ("it", "il che di non per una sono con del grazie mi ho gli della è ma come ordine questo"),
        ("pt", "o os as não para com uma que meu do da em por obrigado você mas foi ainda um minha"),
        ("nl", "de het een en niet ik van is voor met op dat mijn wij u heb maar graag zijn te aan"),
    )
}
_ANY_COMMON = frozenset().union(*_COMMON.values())
_MIN_WORDS = 2


def guess(text: str) -> str | None:
    """`zh`, `en`, `ja`, `ko` and some others; None when unsure."""
    sample = text[:_SAMPLE_CHARS]
    if sample.isascii():
        return _by_words(sample)
    sample = _prose(sample)
    han, latin = _count(_HAN, sample), _count(_LATIN, sample)
    kana, hangul = _count(_KANA, sample), _count(_HANGUL, sample)
    east = han + kana + hangul
    if east and east > _MIN_SHARE * (east + latin / 3):  # a word is a few characters there
        return _eastern(han, kana, hangul)
    for tag, script in _SCRIPTS:
        if _count(script, sample) > max(2, latin):
            return tag
    if _count(_CYRILLIC, sample) > max(2, latin):
        return "uk" if _UKRAINIAN.search(sample) else "ru" if _RUSSIAN.search(sample) else None
    if _count(_ARABIC, sample) > max(2, latin):
        return None if _NOT_ARABIC.search(sample) else "ar"
    return _by_words(sample)


def _count(script: re.Pattern[str], sample: str) -> int:
    """How many characters; a pattern takes a run of them at once."""
    return sum(map(len, script.findall(sample)))


def _prose(sample: str) -> str:
    """Without addresses, whose words are of no language."""
    return _NOT_TEXT.sub(" ", sample) if "@" in sample or "://" in sample or "www." in sample else sample


def _eastern(han: int, kana: int, hangul: int) -> str:
    if hangul > han and hangul > kana:
        return "ko"
    return "ja" if kana * 10 > han else "zh"


def _by_words(sample: str) -> str | None:
    words = _WORD.findall(_prose(sample).lower())
    hits = list(filter(_ANY_COMMON.__contains__, words))
    counts = sorted(((sum(map(common.__contains__, hits)), tag) for tag, common in _COMMON.items()), reverse=True)
    (most, tag), (second, _) = counts[:2]
    return tag if most >= _MIN_WORDS and most > 1.5 * second and most * 12 >= len(words) else None
