"""The secret that all keys come from: made once, kept, and nobody else's to read."""

import os
import stat
from pathlib import Path

import pytest

from gateway import secret
from gateway.errors import ConfigError


def test_a_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    first, second = secret.load(tmp_path, None), secret.load(tmp_path, None)

    assert first.key("files") == second.key("files")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_two_gateways_have_two_secrets(tmp_path: Path) -> None:
    keys = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        keys.append(secret.load(tmp_path / name, None).key("files"))

    assert keys[0] != keys[1]


def test_each_purpose_has_a_key_of_its_own(tmp_path: Path) -> None:
    made = secret.load(tmp_path, None)

    assert made.key("files") != made.key("webform:shop")
    assert len(made.key("files")) == 32


def test_a_configured_secret_is_used_and_nothing_is_written(tmp_path: Path) -> None:
    one, other = secret.load(tmp_path, "x" * 32), secret.load(tmp_path, "x" * 32)

    assert one.key("files") == other.key("files") != secret.load(tmp_path, "y" * 32).key("files")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_damaged_secret_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)

    with pytest.raises(ConfigError, match="secret is damaged: restore it, or remove it"):
        secret.load(tmp_path, None)
    assert (tmp_path / "secret").read_bytes() == content


def test_a_start_that_was_killed_leaves_no_half_secret(tmp_path: Path) -> None:
    (tmp_path / "secret.new").write_bytes(b"half")

    made = secret.load(tmp_path, None)

    assert made.key("files") == secret.load(tmp_path, None).key("files")


def test_the_draft_is_nobody_elses_to_read_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    rename = Path.rename

    def noting(path: Path, to: Path) -> Path:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", noting)
    mask = os.umask(0)
    try:
        secret.load(tmp_path, None)
    finally:
        os.umask(mask)

    assert modes == [0o600]
