"""The Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header-07)."""

import re
from collections.abc import Sequence

from gateway.errors import Rejected

_BARE = "[!#-~]{1,255}"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\["\\]){1,255}"'


def idempotency_key(headers: Sequence[str]) -> str:
    """The key, as a structured field's string (RFC 9651, 3.3.3) or bare. Raises Rejected("malformed")."""
    key = headers[0].strip() if len(headers) == 1 else ""
    if re.fullmatch(_BARE, key):
        return key
    if re.fullmatch(_QUOTED, key):
        return re.sub(r'\\(["\\])', r"\1", key[1:-1])
    raise Rejected("malformed", "Idempotency-Key must be 1 to 255 visible ASCII characters, in double quotes or bare")
