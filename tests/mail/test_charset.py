"""Bytes to text: labels that lie, bytes that tell, and nothing that raises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail import charset

CHINESE = "您好，我的订单还没有收到，请尽快处理，谢谢。"
TRADITIONAL = "您好，我的訂單還沒有收到，請盡快處理，謝謝。"
JAPANESE = "お世話になっております。注文した商品がまだ届きません。"
KOREAN = "안녕하세요, 주문한 상품이 아직 도착하지 않았습니다."
RUSSIAN = "Здравствуйте, мой заказ ещё не пришёл, проверьте пожалуйста."
GERMAN = "Guten Tag, meine Bestellung ist noch nicht da. Grüße aus Köln, Jürgen Müller"


@pytest.mark.parametrize(
    ("text", "encoding", "label"),
    [
        ("镕基先生，喆", "gbk", "gb2312"),
        ("𠮷野家㐂", "gb18030", "gbk"),
        ("價格是€100嗎", "cp950", "big5"),
        ("係唔係啲嘢", "big5hkscs", "big5"),
        ("똠방각하", "cp949", "euc-kr"),
        ("똠방각하", "cp949", "ks_c_5601-1987"),
        ("①髙島屋～", "cp932", "shift_jis"),
        ("Preis: €100 “Müller”", "cp1252", "iso-8859-1"),
        ("שלום", "cp1255", "iso-8859-8-i"),
        ("สวัสดี", "cp874", "tis-620"),
        ("Łódź", "iso8859_2", "ISO-8859-2"),
        ("Grüße", "utf-7", "unicode-1-1-utf-7"),
        (JAPANESE, "iso2022_jp", "iso-2022-jp"),
        (KOREAN, "iso2022_kr", "iso-2022-kr"),
        ("你好世界", "hz", "hz-gb-2312"),
        ("Ω utf-16", "utf-16-le", "utf-16le"),
    ],
)
def test_a_label_means_what_its_senders_have(text: str, encoding: str, label: str) -> None:
    decoded = charset.decode(text.encode(encoding), label)

    assert (decoded.text, decoded.replaced) == (text, 0)


@pytest.mark.parametrize("label", ["", "us-ascii", "x-unknown", "iso-8859-1", "unknown-8bit", "base64", "../x"])
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CHINESE, "gbk"),
        (CHINESE, "utf-8"),
        (TRADITIONAL, "big5"),
        (JAPANESE, "cp932"),
        (JAPANESE, "euc_jp"),
        (JAPANESE, "iso2022_jp"),
        (KOREAN, "cp949"),
        (RUSSIAN, "koi8_r"),
        (RUSSIAN, "cp1251"),
        (GERMAN, "cp1252"),
        (GERMAN, "utf-8"),
        ("您好", "gbk"),
        ("退款", "gbk"),
        ("发票 invoice 2024", "gbk"),
        ("Größe", "cp1252"),
    ],
)
def test_the_bytes_tell_where_the_label_says_nothing(label: str, text: str, encoding: str) -> None:
    assert charset.decode(text.encode(encoding), label).text == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("您好", "gbk"),
        ("退款", "gbk"),
        ("发票抬头写错了", "gbk"),
        ("您好，我的订单还没有收到，请尽快处理，谢谢", "gbk"),
        ("软件激活失败", "gbk"),
        ("打印机坏了，请派人来修", "gbk"),
        ("发票 invoice 2024", "gbk"),
        ("您好，我想詢問訂單狀態", "big5"),
        ("Größe", "cp1252"),
        ("お問い合わせの件", "cp932"),
        ("주문한 상품이 아직", "cp949"),
        ("Проверка связи", "koi8_r"),
    ],
)
def test_a_short_text_without_a_label(text: str, encoding: str) -> None:
    assert charset.decode(text.encode(encoding)).text == text


@pytest.mark.parametrize(
    ("text", "encoding", "label"),
    [
        (CHINESE, "utf-8", "gb2312"),
        (CHINESE, "gbk", "utf-8"),
        (GERMAN, "cp1252", "utf-8"),
        (GERMAN, "utf-8", "iso-8859-1"),
        (TRADITIONAL * 2, "big5", "gb2312"),
        (RUSSIAN, "utf-8", "koi8-r"),
        ("目力", "gbk", "gb2312"),  # also valid UTF-8
    ],
)
def test_a_label_that_lies_is_not_believed(text: str, encoding: str, label: str) -> None:
    assert charset.decode(text.encode(encoding), label).text == text


def test_torn_utf8_stays_utf8_and_is_counted() -> None:
    torn = CHINESE.encode()[:-1] + b"\xe6" + CHINESE.encode()

    decoded = charset.decode(torn, "utf-8")

    assert (decoded.charset, decoded.replaced) == ("utf-8", 2)
    assert decoded.text.endswith(CHINESE)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"])
def test_a_byte_order_mark_decides(mark: bytes) -> None:
    encoding = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}[mark]

    assert charset.decode(mark + CHINESE.encode(encoding), "gb2312").text == CHINESE


def test_half_a_character_is_none() -> None:
    assert charset.decode(b"a+2AA-b", "utf-7") == charset.Decoded("a\ufffdb", "utf-7", 1)


def test_utf7_is_read_only_where_it_is_labelled() -> None:
    assert charset.decode(b"1 +AGE- 2").text == "1 +AGE- 2"


@pytest.mark.parametrize(
    ("html", "label"),
    [
        (b'<meta http-equiv="Content-Type" content="text/html; charset=gb2312">', "gb2312"),
        (b"<META CHARSET='big5'>", "big5"),
        (b'<?xml version="1.0" encoding="utf-8"?>', "utf-8"),
        (b"<p>charset=gbk</p>", ""),
    ],
)
def test_html_labels_itself(html: bytes, label: str) -> None:
    assert charset.meta_charset(html) == label


@given(
    data=st.binary(max_size=200),
    label=st.sampled_from(["", "utf-8", "gbk", "utf-7", "hz", "iso-2022-jp", "utf-16", "big5"]),
)
def test_whatever_comes_is_text(data: bytes, label: str) -> None:
    decoded = charset.decode(data, label)

    assert decoded.replaced <= len(decoded.text.encode("utf-8"))


@given(label=st.text(max_size=80))
def test_any_label_will_do(label: str) -> None:
    charset.decode(b"\xc4\xfa", label)
