"""Bytes to text: by the label where it can be true, by the bytes where it cannot.

Labels are read as what their senders have: `gb2312` holds GBK and GB18030, `iso-8859-1` holds Windows-1252, as browsers
read them (encoding.spec.whatwg.org). No library decides: of the twelve short texts in tests/mail/test_charset.py, most
of them Chinese, charset-normalizer 3.5 reads three, and takes 4 ms for each (measured in November 2026).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from encodings.aliases import aliases
from functools import lru_cache

_SAMPLE_BYTES = 4096  # what is looked at to tell one charset from another
_DOUBTED_BYTES = 24  # fewer high bytes than these say nothing against a label

# theirs -> what is tried, in this order
_GB, _BIG5, _KOREAN, _SJIS = ("gb18030",), ("cp950", "big5hkscs"), ("cp949",), ("cp932", "shift_jis_2004")
_WESTERN = ("cp1252",)
_LABELS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gb2312", "gbk", "gb18030", "cp936", "ms936", "x_gbk", "gb_2312_80", "gb_2312", "euc_cn"), _GB),
    **dict.fromkeys(("gb2312_80", "windows_936", "chinese", "csgb2312", "iso_ir_58", "x_euc_cn", "gb2312_1980"), _GB),
    **dict.fromkeys(("big5", "big5_tw", "csbig5", "cp950", "x_big5", "cn_big5", "big5_eten", "x_x_big5"), _BIG5),
    **dict.fromkeys(("big5_hkscs", "big5hkscs", "hkscs"), ("big5hkscs", "cp950")),
    **dict.fromkeys(("euc_kr", "euckr", "ks_c_5601_1987", "ks_c_5601", "ks_c_5601_1989", "ksc5601"), _KOREAN),
    **dict.fromkeys(
        ("ksc_5601", "ksx1001", "cp949", "uhc", "windows_949", "korean", "cseuckr", "x_windows_949"), _KOREAN
    ),
    **dict.fromkeys(
        ("shift_jis", "shiftjis", "sjis", "x_sjis", "s_jis", "ms_kanji", "windows_31j", "csshiftjis"), _SJIS
    ),
    **dict.fromkeys(("cp932", "ms932", "x_ms_cp932", "windows_932", "csWindows31J".lower()), _SJIS),
    **dict.fromkeys(("euc_jp", "eucjp", "x_euc_jp", "x_euc", "ujis"), ("euc_jp", "euc_jis_2004")),
    **dict.fromkeys(("iso_8859_1", "latin1", "latin_1", "l1", "iso8859_1", "cp1252", "windows_1252"), _WESTERN),
    **dict.fromkeys(("iso_latin_1", "iso_8859_1_1987", "cp819", "ibm819", "ansi", "x_ansi", "8859_1"), _WESTERN),
    **dict.fromkeys(("iso_8859_9", "latin5", "iso8859_9", "cp1254", "windows_1254"), ("cp1254",)),
    **dict.fromkeys(("iso_8859_8_i", "iso_8859_8_e", "iso_8859_8", "hebrew", "visual", "logical"), ("cp1255",)),
    **dict.fromkeys(
        ("windows_874", "cp874", "tis_620", "tis620", "iso_8859_11", "dos_874", "x_windows_874"), ("cp874",)
    ),
    **dict.fromkeys(
        ("utf_8", "utf8", "utf8mb4", "utf8_mb4", "unicode_1_1_utf_8", "x_unicode20utf8", "utf"), ("utf-8",)
    ),
    **dict.fromkeys(("utf_7", "utf7", "unicode_1_1_utf_7", "x_unicode_2_0_utf_7", "csunicode11utf7"), ("utf-7",)),
    **dict.fromkeys(("utf_16", "utf16", "ucs_2", "iso_10646_ucs_2", "unicode"), ("utf-16",)),
    **dict.fromkeys(("utf_16le", "utf_16_le", "unicodelittle"), ("utf-16-le",)),
    **dict.fromkeys(("utf_16be", "utf_16_be", "unicodefffe"), ("utf-16-be",)),
    **dict.fromkeys(("utf_32", "ucs_4", "utf32"), ("utf-32",)),
    **dict.fromkeys(("utf_32le", "utf_32_le"), ("utf-32-le",)),
    **dict.fromkeys(("utf_32be", "utf_32_be"), ("utf-32-be",)),
    **dict.fromkeys(
        ("iso_2022_jp", "csiso2022jp", "iso_2022_jp_1", "iso_2022_jp_2", "iso_2022_jp_ms"), ("iso2022_jp",)
    ),
    **dict.fromkeys(("iso_2022_jp_3", "iso_2022_jp_2004", "jis", "x_jis", "cp50220", "cp50221"), ("iso2022_jp",)),
    **dict.fromkeys(("iso_2022_kr", "csiso2022kr"), ("iso2022_kr",)),
    **dict.fromkeys(("hz_gb_2312", "hz", "hzgb", "hz_gb"), ("hz",)),
    **dict.fromkeys(("macintosh", "x_mac_roman", "mac", "mac_roman"), ("mac_roman",)),
    **dict.fromkeys(("koi8_r", "koi8", "cskoi8r"), ("koi8_r",)),
    **dict.fromkeys(("us_ascii", "ascii", "ansi_x3_4_1968", "ansi_x3.4_1968", "iso646_us", "646"), ("ascii",)),
}
# Python's other text codecs for single bytes; the rest (punycode, unicode_escape, …) is slow or no charset of mail.
_SINGLE = re.compile(r"cp\d{3,4}|iso8859_\d+|koi8_[rut]|mac_\w+|ptcp154|kz1048|hp_roman8|johab|latin_1")
_DOUBTFUL = frozenset(
    {"cp1252", "iso8859_15", "cp1254", "mac_roman", "cp850", "cp437", "ascii"}
)  # labels of the careless
_CJK = frozenset({"gb18030", "cp950", "big5hkscs", "cp949", "cp932", "euc_jp"})
_STATEFUL = frozenset({"utf-7", "iso2022_jp", "iso2022_kr", "hz"})
_WIDE = frozenset({"utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"})
_BEYOND_ASCII = _STATEFUL | _WIDE  # text of theirs can be ASCII bytes that mean something else
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)

_FIRST_OF_BOMS = frozenset(mark[:1] for mark, _ in _BOMS)
_JAPANESE_ESCAPE = re.compile(rb"\x1b(?:\$[@B]|\([JI]|\$\(D)")
_KOREAN_ESCAPE = b"\x1b$)C"
_JIS_SEGMENT = re.compile(rb"\x1b(\$[@B]|\$\([@BDQOP]|\([BJI])([^\x1b]*)")
_META = re.compile(
    rb"""<(?:meta\b[^>]{0,300}?\bcharset|\?xml\b[^>]{0,100}?\bencoding)\s{0,9}=\s{0,9}["']?\s{0,9}([\w.:-]{2,40})""",
    re.I,
)
_META_BYTES = 4096
_GB_CHARACTER = re.compile(rb"([\x81-\xfe](?:[\x40-\x7e\x80-\xfe]|[0-9][\x81-\xfe][0-9]))|\x80")
_UTF8_WIDE = re.compile(rb"[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_LETTER = re.compile("[\ue000-\uf8ff\ufffd\x80-\x9f\uff61-\uff9f]")  # half-width kana too: GBK read as Shift_JIS

# What people write most; the right charset gives many of these, a wrong one few.
_HANZI = frozenset(
    "的一是不了在有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去"
    "法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日者意无力它与长把机十民第公此已工使情明性知全三又关点"
    "正业外将两高间由问很最重并物手应向头文体相见被利什二等产或新己制身果加月话合回特代内信表化老给世位次度门任常先海通教原东声提立"
    "及比员解水名真论处走各入几口认条平系气题活更别打变四总何电数安少报才结反受目太量再感务做接必场件计管期市直德资命金指许统区保至"
    "便空决司五书非则听白却达光放强即像难且权完设式色路记南品住告类求据程北边该交规万取拉格望觉确传师清今切让候带运您请谢订单收货退"
    "款票客服麻烦附码邮箱登录账户密付流快递吗呢吧啊哈尊敬先贵帮忙查询件修坏换错抬专增值税软激活失败世界"
    "這個們來為國說時會對過發後裡種經沒動還進樣開無與長機關點業將兩間問頭體見產話門東聲論認條氣題變總電數報結務計資許統區決書聽卻達"
    "強難權設記類據規萬覺領傳觀識導運請謝單貨訂詢態價嗎係唔啲嘢嘅佢喺咗哋冇點解"
)
_HANGUL = frozenset(
    "이다는의에가을를고하지은한로사기도인리자있어서시대해나수그정아라주보부일장들전원구상것게문만스제요니까안녕세습입합바드했면과와으"
    "확감청제품배송환불영각우내관연계된될때할되신비모오여선성공동무"
)
_CYRILLIC = frozenset("оеаинтсрвлкмдпуяы")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fc]")
_CJK_PUNCTUATION = frozenset("，。！？：；、（）“”《》「」　～１２３４５６７８９０")


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text, the Python codec that made it, and how many U+FFFD stand for bytes that codec could not read."""

    text: str
    charset: str
    replaced: int = 0


@lru_cache(maxsize=256)
def codecs_of(label: str) -> tuple[str, ...]:
    """The codecs a label may mean, the likeliest first; () for a label that says nothing."""
    name = re.sub(r"[^a-z0-9.]+", "_", label[:60].lower()).strip("_")
    if known := _LABELS.get(name):
        return known
    name = name.replace(".", "_")
    codec = aliases.get(name, name)
    if codec in _LABELS:
        return _LABELS[codec]
    windows = re.fullmatch(r"(?:x_)?(?:windows|win|cp|ibm|dos)_?(\d{3,4})", name)
    if windows:
        codec = f"cp{windows[1]}"
    if codec in _LABELS:
        return _LABELS[codec]
    return (codec,) if _SINGLE.fullmatch(codec) and codec in _INSTALLED else ()


_INSTALLED = frozenset(aliases.values()) | {"cp874", "cp720", "cp737", "cp856", "cp875", "cp1006", "koi8_t", "koi8_u"}


def decode(data: bytes, label: str = "", hints: Iterable[str] = ()) -> Decoded:
    """The text of `data`. `hints` are labels of what stands near it, tried when its own says nothing. Never raises."""
    codecs = codecs_of(label) if label else ()
    if data.isascii() and (not codecs or codecs[0] not in _BEYOND_ASCII) and not _hidden(data):
        return Decoded(data.decode("ascii"), codecs[0] if codecs else "ascii")
    for mark, codec in _BOMS if data[:1] in _FIRST_OF_BOMS else ():
        if data.startswith(mark):
            return _by(data[len(mark) :], (codec,))
    if codecs and (known := _labelled(data, codecs)):
        return known
    return _guessed(data, codecs, hints)


def meta_charset(html: bytes) -> str:
    """The label that an HTML or XML text gives itself, "" if none."""
    found = _META.search(html[:_META_BYTES])
    return found[1].decode("ascii", "replace") if found else ""


def _hidden(ascii_: bytes) -> bool:
    """Whether there is more behind these ASCII bytes: escape sequences, or the zeros of UTF-16."""
    return b"\x1b" in ascii_ or b"\0" in ascii_


def _strict(data: bytes, codec: str) -> str | None:
    try:
        return data.decode(codec)
    except (UnicodeDecodeError, UnicodeError):
        return None


def _by(data: bytes, codecs: Iterable[str]) -> Decoded:
    """By the first that reads it all, else by the one that loses least."""
    best: Decoded | None = None
    for codec in codecs:
        if (text := _strict(data, codec)) is not None:
            return _whole(text.removeprefix("\ufeff"), codec)
        text = _REPAIRED[codec](data) if codec in _REPAIRED else data.decode(codec, "replace")
        found = _whole(text, codec)
        best = found if best is None or found.replaced < best.replaced else best
    return best or Decoded(data.decode("ascii", "replace"), "ascii")


def _whole(text: str, codec: str) -> Decoded:
    """Without halves of a character: Python's UTF-7 lets them through, and nothing that writes UTF-8 takes them."""
    if codec in _BEYOND_ASCII:
        text = _SURROGATE.sub("\ufffd", text)
    return Decoded(text, codec, text.count("\ufffd"))


def _labelled(data: bytes, codecs: tuple[str, ...]) -> Decoded | None:
    """By its label; None when the bytes speak against it."""
    first = codecs[0]
    if first == "utf-8":
        return _utf8(data)
    if first in _BEYOND_ASCII:
        return _by(data, codecs) if _fits(data, first) else None
    if (text := _strict(data, "utf-8")) is not None and not data.isascii() and _is_utf8(data, first, text):
        return Decoded(text, "utf-8")
    if first in _DOUBTFUL or data.isascii():
        return None
    found = _by(data, codecs)
    if found.replaced or (first in _CJK and _doubted(data, first)):
        return None
    return found


def _fits(data: bytes, codec: str) -> bool:
    if codec in _WIDE:
        return b"\0" in data or _strict(data, "utf-8") is None
    return _KOREAN_ESCAPE in data if codec == "iso2022_kr" else data.isascii()


def _utf8(data: bytes) -> Decoded | None:
    if (text := _strict(data, "utf-8")) is not None:
        return None if b"\x1b" in data or (b"\0" in data and _zeros(data)) else Decoded(text, "utf-8")
    text = data.decode("utf-8", "replace")
    lost = text.count("\ufffd")
    read = len(_UTF8_WIDE.findall(data[: 16 * _SAMPLE_BYTES]))
    pairs = len(re.findall(rb"[\xc2-\xdf][\x80-\xbf](?![\x80-\xbf])", data[: 16 * _SAMPLE_BYTES]))
    return Decoded(text, "utf-8", lost) if read > lost or (read + pairs > 2 * lost and not read < pairs < 8) else None


def _is_clearly_utf8(data: bytes, torn: Decoded) -> bool:
    return len(_UTF8_WIDE.findall(data[:_SAMPLE_BYTES])) > max(1, 2 * torn.replaced)


def _is_utf8(data: bytes, labelled: str, text: str) -> bool:
    """Valid UTF-8 is UTF-8, but for a few double bytes of Chinese that happen to be both."""
    if labelled not in _CJK or _UTF8_WIDE.search(data):
        return True
    return _strict(data, labelled) is None or _score(data, labelled) < 0.2


def _doubted(data: bytes, codec: str) -> bool:
    """Whether another charset makes sense of what this one makes none of."""
    own = _score(data, codec)
    if own >= 0.15 or sum(map(len, _HIGH_RUN.findall(data[:_SAMPLE_BYTES]))) < _DOUBTED_BYTES:
        return False
    return max(_score(data, other) for other in _CANDIDATES) >= 0.6


def _guessed(data: bytes, codecs: tuple[str, ...], hints: Iterable[str]) -> Decoded:
    if found := _escaped(data):
        return found
    if (text := _strict(data, "utf-8")) is not None:
        return Decoded(text, "utf-8")
    for hint in hints:
        hinted = codecs_of(hint)
        if hinted and hinted[0] not in _BEYOND_ASCII | _DOUBTFUL and not (found := _by(data, hinted)).replaced:
            return found
    torn = _utf8(data)
    return torn if torn and _is_clearly_utf8(data, torn) else _likeliest(data, codecs)


def _escaped(data: bytes) -> Decoded | None:
    """Charsets that show themselves: by escape sequences, by zeros between the letters."""
    if _KOREAN_ESCAPE in data[:_SAMPLE_BYTES]:
        return _by(data, ("iso2022_kr",))
    if b"\x1b" in data and _JAPANESE_ESCAPE.search(data):
        return _by(data, ("iso2022_jp",))
    if b"\0" in data and (codec := _zeros(data)):
        return _by(data, (codec,))
    return None


def _zeros(data: bytes) -> str:
    sample = data[:_SAMPLE_BYTES]
    half = len(sample) // 2
    odd, even = sample[1::2].count(0), sample[0::2].count(0)
    if half > 3 and max(odd, even) > 0.4 * half and min(odd, even) < 0.1 * half:
        return "utf-16-le" if odd > even else "utf-16-be"
    return ""


_CANDIDATES = ("gb18030", "cp950", "big5hkscs", "cp949", "cp932", "euc_jp", "koi8_r", "cp1251")
_CYRILLIC_CODECS = ("koi8_r", "cp1251")
_PRIOR = {"gb18030": 0.05, "big5hkscs": -0.02, "euc_jp": -0.02}


def _likeliest(data: bytes, codecs: tuple[str, ...]) -> Decoded:
    """The label's own charset has the edge; a Western one needs its high bytes to stand alone."""
    scores = {codec: _score(data, codec) + _PRIOR.get(codec, 0) + 0.2 * (codec in codecs) for codec in _CANDIDATES}
    alone = _alone(data)
    for codec in _CYRILLIC_CODECS:
        scores[codec] *= 1 - alone
    best = max(scores, key=scores.__getitem__)
    if scores[best] > 0.6 * alone:
        return _by(data, (best,))
    own = codecs if codecs and codecs[0] not in _BEYOND_ASCII | {"ascii", "utf-8"} else ("cp1252",)
    return _by(data, own if own[0] not in _DOUBTFUL else (*own, "cp1252", "gb18030"))


def _score(data: bytes, codec: str) -> float:
    """How much of the text that is not ASCII are characters people write: 1 is all, below 0 is nonsense."""
    sample = data[:_SAMPLE_BYTES] if data[:_SAMPLE_BYTES].isascii() is False else _around_first_high(data)
    text = sample.decode(codec, "replace")
    if len(sample) < len(data):
        text = text[:-1]
    chars = [char for char in text if char > "\x7f"]
    if not chars:
        return 0.0
    joined = "".join(chars)
    bad = len(_NO_LETTER.findall(joined))
    return (sum(map(_WRITTEN[codec].__contains__, chars)) - 2 * bad) / len(chars)


def _around_first_high(data: bytes) -> bytes:
    found = _HIGH_RUN.search(data)
    return data[found.start() : found.start() + _SAMPLE_BYTES] if found else b""


_CHINESE = _HANZI | _CJK_PUNCTUATION
_JAPANESE = _CJK_PUNCTUATION | frozenset(map(chr, range(0x3041, 0x30FD)))
_WRITTEN = {
    **dict.fromkeys(("gb18030", "cp950", "big5hkscs"), _CHINESE),
    "cp949": _HANGUL,
    **dict.fromkeys(("cp932", "euc_jp"), _JAPANESE),
    **dict.fromkeys(_CYRILLIC_CODECS, _CYRILLIC),
}


def _alone(data: bytes) -> float:
    """The share of the high bytes that stand as accented letters do: one or two among ASCII letters."""
    runs = _HIGH_RUN.findall(data[:_SAMPLE_BYTES])
    total = sum(map(len, runs))
    return sum(1 for run in runs if len(run) <= 2) / total if total else 0.0


def _with_euro(data: bytes) -> str:
    """Windows' code page 936 has the euro sign at 80."""
    return _GB_CHARACTER.sub(lambda found: found[1] or b"\xa2\xe3", data).decode("gb18030", "replace")


def _shift_in(data: bytes) -> str:
    """ISO-2022-JP with characters that only Windows has (NEC row 13, NEC selected IBM), by way of Shift_JIS."""
    data = data if data.startswith(b"\x1b") else b"\x1b(B" + data
    return "".join(_jis_segment(segment[1], segment[2]) for segment in _JIS_SEGMENT.finditer(data))


def _jis_segment(designation: bytes, body: bytes) -> str:
    if designation == b"(I":
        return bytes(byte | 0x80 for byte in body).decode("cp932", "replace")
    if not designation.startswith(b"$"):
        return body.decode("utf-8", "replace")
    out = bytearray()
    at = 0
    while at < len(body):
        pair = body[at : at + 2]
        if len(pair) == 2 and 0x21 <= pair[0] <= 0x7E and 0x21 <= pair[1] <= 0x7E:
            out += _shifted(*pair)
            at += 2
        else:  # a line end within: some mailers forget to return to ASCII before it
            out.append(body[at])
            at += 1
    return out.decode("cp932", "replace")


def _shifted(row: int, cell: int) -> bytes:
    lead = ((row - 0x21) >> 1) + (0x81 if row < 0x5F else 0xC1)
    trail = cell + (0x7E if row % 2 == 0 else 0x1F if cell < 0x60 else 0x20)
    return bytes((lead, trail))


_REPAIRED = {"iso2022_jp": _shift_in, "gb18030": _with_euro}
