"""Signature and encryption: published vectors, and two other implementations, both ways."""

import base64
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wechatpy.crypto import WeChatCrypto

from gateway.errors import Rejected
from gateway.wechat.crypto import Key, is_signature, signature
from tests.wechat.peer import AES_KEY, APPID, OTHER_AES_KEY, TEXT, TOKEN, Peer, envelope, sign

PEER = Peer()
KEY = Key(AES_KEY, APPID)
AES_KEYS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", min_size=43, max_size=43)
APPIDS = st.from_regex(r"wx[0-9a-f]{16}", fullmatch=True)
MESSAGES = st.binary(max_size=200)

# As WeChat's pages have them: "message push" of the mini-programs, and wechatpy's check_signature.
SIGNATURES = {
    "address": (("AAAAA", "1714036504", "1514711492"), "f464b24fc39322e44b38aa78f5edd27bd1441696"),
    "plaintext": (("AAAAA", "1714037059", "486452656"), "899cf89e464efb63f54ddac96b0a0a235f53aa78"),
    "safe, of the address": (("AAAAA", "1714112445", "415670741"), "6c5c811b55cc85e0e1b54100749188c20beb3f5d"),
    "wechatpy": (("test", "1410685589", "test"), "f21891de399b4e33a1a93c9a7b8a8fffb5a443ff"),
}


@pytest.mark.parametrize(("texts", "expected"), SIGNATURES.values(), ids=SIGNATURES)
def test_published_signatures(texts: tuple[str, ...], expected: str) -> None:
    assert signature(*texts) == expected
    assert is_signature(expected, *texts)


@given(texts=st.lists(st.text(max_size=20), max_size=4))
def test_signatures_are_those_of_a_second_implementation(texts: list[str]) -> None:
    encodable = [text.encode("utf-8", "replace").decode() for text in texts]
    by_bytes = b"".join(sorted(text.encode() for text in encodable)).decode()

    assert signature(*encodable) == sign(by_bytes)


@pytest.mark.parametrize(
    "given_", ["", "F464B24FC39322E44B38AA78F5EDD27BD1441696", "签名", "\udcff", "f464b24f", "0" * 40]
)
def test_any_other_text_is_no_signature(given_: str) -> None:
    assert not is_signature(given_, "AAAAA", "1714036504", "1514711492")


def test_a_reply_as_published() -> None:
    key = Key("A" * 43, "wxba5fad812f8e6fb9", lambda n: b"707722b803182950")

    encrypted = key.encrypt(b'{"demo_resp":"good luck"}')

    assert encrypted == "ELGduP2YcVatjqIS+eZbp80MNLoAUWvzzyJxgGzxZO/5sAvd070Bs6qrLARC9nVHm48Y4hyRbtzve1L32tmxSQ=="
    assert key.decrypt(encrypted) == b'{"demo_resp":"good luck"}'


@settings(max_examples=60, deadline=None)
@given(aes_key=AES_KEYS, appid=APPIDS, message=MESSAGES)
def test_a_second_implementation_reads_what_we_write_and_we_what_it_writes(
    aes_key: str, appid: str, message: bytes
) -> None:
    ours, theirs = Key(aes_key, appid), Peer(TOKEN, aes_key, appid)

    assert theirs.decrypt(ours.encrypt(message)) == message
    assert ours.decrypt(theirs.encrypt(message)) == message


@settings(max_examples=60, deadline=None)
@given(aes_key=AES_KEYS, appid=APPIDS, text=st.text(min_size=1, max_size=80))
def test_wechatpy_reads_what_we_write_and_we_what_it_writes(aes_key: str, appid: str, text: str) -> None:
    ours, theirs = Key(aes_key, appid), WeChatCrypto(TOKEN, aes_key, appid)
    encrypted = ours.encrypt(text.encode())
    signed = signature(TOKEN, "1760000000", "n", encrypted)

    assert theirs.decrypt_message({"Encrypt": encrypted}, signed, "1760000000", "n") == text
    found = re.search(r"<Encrypt><!\[CDATA\[(.*)]]>", theirs.encrypt_message(text, "n", "1760000000"))
    assert found
    assert ours.decrypt(found[1]).decode() == text


@pytest.mark.parametrize("size", range(96))
def test_every_padding_from_1_to_32(size: int) -> None:
    message = bytes(size)

    assert KEY.decrypt(PEER.encrypt(message)) == message
    assert PEER.decrypt(KEY.encrypt(message)) == message


def test_two_encryptions_of_a_message_differ() -> None:
    assert KEY.encrypt(TEXT) != KEY.encrypt(TEXT)


# What has to be refused. Each is made by WeChat's own key: the signature would let it through.

CONTENT = bytes(16) + (5).to_bytes(4) + b"hello" + APPID.encode()  # 43 bytes: 21 are missing to a whole block
HOSTILE: dict[str, Callable[[], str]] = {
    "padding 0": lambda: PEER.encrypt_blocks(CONTENT + bytes(21)),
    "padding 33": lambda: PEER.encrypt_blocks(bytes(16) + (25).to_bytes(4) + bytes(25) + APPID.encode() + b"!" * 33),
    "padding 255": lambda: PEER.encrypt_blocks(CONTENT + b"\xff" * 21),
    "padding not all the same": lambda: PEER.encrypt_blocks(CONTENT + b"\x14" + b"\x15" * 20),
    "padding alone": lambda: PEER.encrypt_blocks(b"\x20" * 32),
    "padding over all there is": lambda: PEER.encrypt_blocks(bytes(16) + b"\x10" * 16),
    "blocks of 16": lambda: PEER.encrypt_blocks(CONTENT + b"\x05" * 5),
    "no whole block": lambda: base64.b64encode(base64.b64decode(PEER.encrypt(TEXT))[:-1]).decode(),
    "nothing": lambda: "",
    "no base64": lambda: "*" * 44,
    "base64 without its end": lambda: PEER.encrypt(b"hello").rstrip("=") + "A",
    "base64 with a line end": lambda: PEER.encrypt(b"hello") + "\n",
    "no ASCII": lambda: "密文" * 22,
    "half a character": lambda: "\udc80" * 44,
    "longer than it is": lambda: PEER.encrypt(b"hello", length=6),
    "much longer than it is": lambda: PEER.encrypt(b"hello", length=0xFFFFFFFF),
    "shorter than it is": lambda: PEER.encrypt(b"hello", length=4),
    "for another account": lambda: Peer(appid="wx5a1e0f7c33d94b27").encrypt(TEXT),
    "for no account": lambda: Peer(appid="").encrypt(TEXT),
    "for an account with a longer name": lambda: Peer(appid=APPID + "0").encrypt(TEXT),
    "under another key": lambda: Peer(aes_key=OTHER_AES_KEY).encrypt(TEXT),
}


@pytest.mark.parametrize("encrypted", HOSTILE.values(), ids=HOSTILE)
def test_what_is_not_well_encrypted_for_us_is_refused(encrypted: Callable[[], str]) -> None:
    with pytest.raises(Rejected) as refused:
        KEY.decrypt(encrypted())

    assert refused.value.code == "forbidden"
    assert AES_KEY not in refused.value.reason


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_bit_that_was_turned_is_decided_as_a_second_implementation_does(at: int, bit: int) -> None:
    blocks = bytearray(base64.b64decode(PEER.encrypt(TEXT)))
    blocks[at % len(blocks)] ^= 1 << bit
    encrypted = base64.b64encode(blocks).decode()

    assert _outcome(lambda: KEY.decrypt(encrypted)) == _outcome(lambda: PEER.decrypt(encrypted))


@settings(max_examples=100, deadline=None)
@given(blocks=st.binary(max_size=130) | st.binary(min_size=64, max_size=64))
def test_any_ciphertext_is_read_or_refused(blocks: bytes) -> None:
    try:
        KEY.decrypt(base64.b64encode(blocks).decode())
    except Rejected as refused:
        assert refused.code == "forbidden"  # noqa: PT017 - it may as well be read


def _outcome(decrypt: Callable[[], bytes]) -> bytes | None:
    try:
        return decrypt()
    except (Rejected, ValueError, AssertionError):
        return None


def test_wechatpy_lets_a_wrong_padding_through_and_we_do_not() -> None:
    encrypted = HOSTILE["padding not all the same"]()
    signed = sign(TOKEN, "1760000000", "n", encrypted)

    theirs = WeChatCrypto(TOKEN, AES_KEY, APPID).decrypt_message(envelope(encrypted), signed, "1760000000", "n")

    assert theirs == "hello"
    with pytest.raises(Rejected, match="padding"):
        KEY.decrypt(encrypted)
