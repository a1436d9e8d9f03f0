"""The gateway's secret, from which every other key is derived."""

import hmac
import os
import secrets
from pathlib import Path

from gateway.errors import ConfigError


class Secrets:
    """`key(purpose)` is stable over restarts; keys of different purposes tell nothing about each other."""

    def __init__(self, root: bytes) -> None:
        self._root = root

    def key(self, purpose: str) -> bytes:
        """32 bytes: HMAC-SHA256 of the purpose under the root secret."""
        return hmac.digest(self._root, purpose.encode(), "sha256")


def load(state_dir: Path, configured: str | None) -> Secrets:
    """From the configuration, else from `state_dir/secret`, made at the first start and readable by us alone."""
    if configured:
        return Secrets(configured.encode())
    path = state_dir / "secret"
    if not path.exists():
        _write(path)
    root = path.read_bytes()
    if len(root) < 32:
        raise ConfigError(
            f"{path} is damaged: restore it, or remove it (forms open now and file addresses then expire)"
        )
    return Secrets(root)


def _write(path: Path) -> None:
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_hex(32).encode())
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
