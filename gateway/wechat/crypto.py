"""WeChat's signature and encryption.

Signature: the hex SHA-1 of the sorted texts, one behind the other. Encryption: AES-256-CBC over 16 random bytes, the
length of the message (32 bits, big end first), the message and the appid, padded by PKCS#7 to blocks of 32; the first
half of the key is the initialisation vector.
wechatpy (1.8.18) signs, enciphers and deciphers. It compares in no constant time, never looks at the padding, raises
whatever its parts raise, and draws its random bytes from a generator that can be foretold: that is done here.
Source: developers.weixin.qq.com/doc/service/guide/dev/push/encryption
"""

import base64
import binascii
import hmac
import secrets
from collections.abc import Callable

from wechatpy.crypto import PrpCrypto
from wechatpy.utils import WeChatSigner

from gateway.errors import Rejected

_BLOCK = 32
_HEAD = 20  # the random bytes and the length


def signature(*texts: str) -> str:
    """In hex. The token is one of the texts."""
    signer = WeChatSigner()
    signer.add_data(*texts)
    return str(signer.signature)


def is_signature(given: str, *texts: str) -> bool:
    """In a time that tells nothing of how much of it was right."""
    return hmac.compare_digest(signature(*texts).encode(), given.encode("utf-8", "surrogatepass"))


class Key:
    """An EncodingAESKey at work for one account. `random(n)` gives n unpredictable bytes."""

    def __init__(self, aes_key: str, appid: str, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._appid = appid.encode()
        self._prp = PrpCrypto(base64.b64decode(f"{aes_key}="))
        self._prp.get_random_string = lambda: random(16)

    def encrypt(self, message: bytes) -> str:
        """The text of `Encrypt`."""
        encrypted: bytes = self._prp.encrypt(message, self._appid)
        return encrypted.decode()

    def decrypt(self, encrypted: str) -> bytes:
        """The message, whose every byte around it was as it has to be. Raises Rejected("forbidden")."""
        padded = self._decipher(encrypted)
        padding = padded[-1]
        if not 1 <= padding <= _BLOCK or not padded.endswith(padding.to_bytes() * padding):
            raise _undecipherable("the padding is wrong: it was encrypted with another key")
        end = _HEAD + int.from_bytes(padded[16:_HEAD])
        appid = padded[end:-padding]
        if not hmac.compare_digest(appid, self._appid):
            raise _undecipherable(f"it ends with the appid {appid[:64].decode('ascii', 'replace')!a}")
        return padded[_HEAD:end]

    def _decipher(self, encrypted: str) -> bytes:
        try:
            blocks = base64.b64decode(encrypted, validate=True)
        except (binascii.Error, ValueError) as error:  # ValueError: it is not ASCII
            raise _undecipherable("Encrypt is no base64") from error
        if not blocks or len(blocks) % _BLOCK:
            raise _undecipherable(f"Encrypt has {len(blocks)} bytes, which are no whole blocks of {_BLOCK}")
        plain: bytes = self._prp.cipher.decrypt(blocks)
        return plain


def _undecipherable(reason: str) -> Rejected:
    return Rejected("forbidden", "this cannot be decrypted for this account", reason=reason)
