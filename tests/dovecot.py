"""A Dovecot of the test's own (2.3, from Debian), with IDLE, TLS if wanted, and mail in Maildirs.

It runs as `nobody` when the tests run as root: Dovecot gives its login processes no root. Faults are put in from
outside: it is killed, halted, its connections are cut, its memory of UIDs is deleted.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.daemon import free_port

_START_SECS = 20
_CONFIG = """
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
protocols = imap
listen = 127.0.0.1
ssl = {ssl}
disable_plaintext_auth = no
auth_mechanisms = {mechanisms}
auth_failure_delay = 0
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 0
first_valid_gid = 0
mail_location = maildir:{folder}/mail/%u
mail_max_userip_connections = 1000
mailbox_idle_check_interval = 1s
namespace inbox {{
  inbox = yes
  separator = /
}}
passdb {{
  driver = passwd-file
  args = scheme=plain username_format=%u {folder}/passwords
}}
{oauth}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={folder}/home/%u allow_all_users=yes
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {tls_port}
  }}
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
"""
_OAUTH = """
passdb {{
  driver = oauth2
  mechanisms = xoauth2
  args = {folder}/oauth.conf
}}
"""


class Dovecot:
    """`user` has the password `password`. `tokens_at`: a URL that tells whose an access token is, for XOAUTH2.

    `certificate`: files of a certificate and its key, for TLS.
    """

    user = "support"
    password = "the-password-of-the-mailbox"

    def __init__(self, tokens_at: str = "", certificate: tuple[Path, Path] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dovecot-", dir="/tmp"))
        self.port = free_port()
        self.tls_port = free_port() if certificate else 0
        self._tokens_at = tokens_at
        self._certificate = certificate
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        account = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self._uid, self._gid = account.pw_uid, account.pw_gid
        self._account = account.pw_name
        self._write_config()

    def _write_config(self) -> None:
        for name in ("run", "state", "mail", "home"):
            (self.folder / name).mkdir()
        ssl, oauth = "no", ""
        if self._certificate:
            certificate, key = self._certificate
            for source, target in ((certificate, "certificate.pem"), (key, "key.pem")):
                shutil.copy(source, self.folder / target)
            ssl = f"yes\nssl_cert = <{self.folder}/certificate.pem\nssl_key = <{self.folder}/key.pem"
        if self._tokens_at:
            oauth = _OAUTH.format(folder=self.folder)
            (self.folder / "oauth.conf").write_text(
                f"tokeninfo_url = {self._tokens_at}?access_token=\nusername_attribute = email\n"
            )
        group = subprocess.run(["id", "-gn", self._account], check=True, capture_output=True, text=True).stdout.strip()
        text = _CONFIG.format(
            folder=self.folder,
            user=self._account,
            group=group,
            uid=self._uid,
            gid=self._gid,
            port=self.port,
            tls_port=self.tls_port,
            ssl=ssl,
            mechanisms="plain login xoauth2" if oauth else "plain login",
            oauth=oauth,
        )
        (self.folder / "dovecot.conf").write_text(text)
        self.set_password(self.password)
        self._give_away(self.folder)

    def _give_away(self, top: Path) -> None:
        if os.geteuid() == 0:
            for path in (top, *top.rglob("*")):
                with suppress(FileNotFoundError):  # a lock of Dovecot's
                    os.chown(path, self._uid, self._gid)

    def set_password(self, password: str) -> None:
        (self.folder / "passwords").write_text(f"{self.user}:{{PLAIN}}{password}\n")

    # Life

    def start(self) -> "Dovecot":
        program = shutil.which("dovecot", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "the tests need Dovecot: apt install dovecot-imapd"
        as_nobody = {"user": self._uid, "group": self._gid, "extra_groups": []} if os.geteuid() == 0 else {}
        self._process = subprocess.Popen(
            [program, "-F", "-c", str(self.folder / "dovecot.conf")],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **as_nobody,  # type: ignore[call-overload]  # what it takes
        )
        deadline = time.monotonic() + _START_SECS
        while not self._listens():
            assert time.monotonic() < deadline, self.log()
            assert self._process.poll() is None, self.log()
            time.sleep(0.02)
        return self

    def _listens(self) -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def kill(self) -> None:
        """All its processes, at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)  # else the master makes new ones meanwhile
            for pid in (*self._processes(), self._process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
        self._process = None
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        (self.folder / "run").mkdir()
        self._give_away(self.folder / "run")

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        path = self.folder / "dovecot.log"
        return path.read_text(errors="replace") if path.exists() else "no log"

    def _processes(self) -> Iterator[int]:
        """The master's children, by /proc."""
        assert self._process is not None
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if parent == self._process.pid:
                        yield int(entry.name)

    def sessions(self) -> list[int]:
        """The processes that serve logged-in clients."""
        found = []
        for pid in self._processes():
            with suppress(OSError):
                if (Path("/proc") / str(pid) / "comm").read_text().strip() == "imap":
                    found.append(pid)
        return found

    # Faults

    def kick(self) -> None:
        """BYE to whoever is logged in."""
        subprocess.run(
            ["doveadm", "-c", str(self.folder / "dovecot.conf"), "kick", self.user], check=False, capture_output=True
        )

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Connections stay open, and nobody answers on them."""
        pids = self.sessions()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def forget_uids(self, folder: str = "") -> None:
        """The next session sees another UIDVALIDITY. A second has to pass: it is made of the time."""
        for path in (self.maildir(folder)).glob("dovecot*"):
            path.unlink()
        for path in self.maildir("").glob("dovecot-uidvalidity*"):
            path.unlink()

    # Mail

    def maildir(self, folder: str = "") -> Path:
        """`folder` in modified UTF-7."""
        top = self.folder / "mail" / self.user
        return top / f".{folder}" if folder else top

    def make_folder(self, folder: str = "") -> Path:
        path = self.maildir(folder)
        for name in ("cur", "new", "tmp"):
            (path / name).mkdir(parents=True, exist_ok=True)
        self._give_away(self.maildir())
        return path

    def put(self, *mails: bytes, folder: str = "") -> None:
        """As a delivery agent does."""
        path = self.maildir(folder)
        if not (path / "new").is_dir():
            self.make_folder(folder)
        for mail in mails:
            self._number += 1
            name = f"{int(time.time())}.M{self._number:07}P{os.getpid()}.test"
            (path / "tmp" / name).write_bytes(mail)
            (path / "tmp" / name).chmod(0o644)
            (path / "tmp" / name).rename(path / "new" / name)

    def mails(self, folder: str = "") -> list[Path]:
        path = self.maildir(folder)
        found: Iterable[Path] = [*(path / "new").glob("*"), *(path / "cur").glob("*")]
        return sorted(found, key=lambda one: one.name)


def mail(number: int | str, text: str = "你好", *, headers: Sequence[str] = ()) -> bytes:
    """A small mail; the same one for the same arguments."""
    lines = [
        f"Message-ID: <{number}@example.com>",
        "From: =?utf-8?B?5byg5LiJ?= <zhang@example.com>",
        "To: support@acme.cn",
        f"Subject: mail {number}",
        "Date: Mon, 23 Nov 2026 09:00:00 +0800",
        "Content-Type: text/plain; charset=utf-8",
        *headers,
        "",
        text,
        "",
    ]
    return "\r\n".join(lines).encode()
