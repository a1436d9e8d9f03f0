"""The language of a text, or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.language import guess


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("您好，我的订单还没有收到", "zh"),
        ("order A1024 已付款，请尽快发货，谢谢", "zh"),
        ("您好，我的訂單還沒有收到", "zh"),
        ("お世話になっております。注文の件です", "ja"),
        ("안녕하세요, 주문 확인 부탁드립니다", "ko"),
        ("Dear team, my order has not arrived and I need it", "en"),
        ("Guten Tag, die Bestellung ist noch nicht da", "de"),
        ("Здравствуйте, мы ещё не получили заказ", "ru"),
        ("สวัสดีครับ", "th"),
        ("ok", None),
        ("A1024", None),
        ("https://example.com/the/and/is/of", None),
        ("", None),
    ],
)
def test_the_language(text: str, language: str | None) -> None:
    assert guess(text) == language


@given(text=st.text(max_size=80))
def test_whatever_comes(text: str) -> None:
    assert guess(text) is None or len(str(guess(text))) == 2
