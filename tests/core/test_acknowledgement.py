"""Who is sent an acknowledgement and who never is; what it says; what is wrong with its settings."""

from datetime import timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.acknowledgement import Acknowledgements
from gateway.contract import Acknowledge, ChannelSettings, StoredMessage
from gateway.envelope import Authentication, Identity, Message, Recipient, Sender, Thread
from gateway.errors import ConfigError, Rejected
from gateway.identity import message_id
from gateway.letter import Letter, Suppressed, Templates, compose, is_ours
from gateway.mail import replyaddress
from gateway.settings import load
from tests.core.samples import NOW

KEY = b"k" * 32
TEMPLATES = Templates()
ID = message_id("/acme/mail", "m1", b"")
REFERENCE = "7K3M-9QX2-4WPD"


def block(**settings: Any) -> Acknowledge:
    return Acknowledge.model_validate({"from": "ACME Support <support@acme.cn>", **settings})


class Mailbox(ChannelSettings):
    """A channel that takes mail for a whole domain."""

    def receives(self, address: str) -> bool:
        return address.endswith("@help.acme.cn")


CHANNELS = {
    "mail": ChannelSettings(type="echo", acknowledge=block()),
    "sales": ChannelSettings(type="echo", acknowledge=block(**{"from": "sales@客服.中国", "reply_to": "desk@acme.cn"})),
    "helpers": Mailbox(type="echo"),
    "silent": ChannelSettings(type="echo"),
}


def stored(channel: str = "mail", **facts: Any) -> StoredMessage:
    return StoredMessage(ID, channel, "rfc5322", b"", "", "m1", facts, NOW)


def message(address: str = "zhang@example.com", **more: Any) -> Message:
    identities = (Identity(kind="user_id", value="u1"), Identity(kind="email", value=address)) if address else ()
    return Message(sender=Sender(name="张三", identities=identities), **{"text": "hello", **more})


def decide(message: Message, raw: StoredMessage | None = None, later: float = 0) -> Letter | Suppressed | None:
    acknowledgements = Acknowledgements(lambda: CHANNELS, lambda: NOW + timedelta(seconds=later))
    return acknowledgements(7, raw or stored(), message)


def code(message: Message, raw: StoredMessage | None = None, later: float = 0) -> str:
    decided = decide(message, raw, later)
    return decided.code if isinstance(decided, Suppressed) else ""


# --- who --------------------------------------------------------------------------------------------------------------


def test_a_customer_is_sent_a_letter() -> None:
    letter = decide(message(subject="打印机\r\n坏了", language="zh-Hans", thread=Thread(message_id="m1@x")))

    assert isinstance(letter, Letter)
    assert (letter.seq, letter.id, letter.channel) == (7, ID, "mail")
    assert letter.recipient == "zhang@example.com"
    assert letter.reference.replace("-", "").lower() == ID[:12]
    assert (letter.subject, letter.language, letter.in_reply_to) == ("打印机 坏了", "zh", "m1@x")


def test_a_channel_that_acknowledges_nothing_counts_nothing() -> None:
    assert decide(message(), stored("silent")) is None
    assert decide(message(), stored("removed")) is None


@pytest.mark.parametrize(
    "address",
    [
        "zhang@example.com",
        "reply@example.com",
        "norah.eply@example.com",
        "owner@shop.example",  # a person's, or a shop's; owner-… is a list's
        "request@shop.example",
        "shop-admin@example.com",
        "zhang+bounce@example.com",
        "张@例子.中国".replace("张", "zhang"),
        "printer@office.local",
        "'o.brien'@example.com",
        "=?utf-8?q?=0D=0AX?=@example.com",
    ],
)
def test_people_are(address: str) -> None:
    assert code(message(address)) == ""


@pytest.mark.parametrize(
    "address",
    [
        "noreply@example.com",
        "no-reply@example.com",
        "No_Reply@example.com",
        "no.reply.7788@example.com",
        "service-noreply@example.com",
        "do-not-reply@example.com",
        "donotreply+77@example.com",
        "MAILER-DAEMON@example.com",
        "mailer_daemon@example.com",
        "postmaster@example.com",
        "owner-list@example.com",
        "list-owner@example.com",
        "list-request@example.com",
        "list-bounces@example.com",
        "list-bounces+zhang=example.com@example.com",
        "bounce@example.com",
        "bounce-77_html@example.com",
        "auto-reply@example.com",
        "majordomo@example.com",
        "MAILER-DAEMON",
    ],
)
def test_robots_are_not(address: str) -> None:
    assert code(message(address)) == "robot"
    assert code(message(), stored(mail_from=address)) == "robot"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("", "no_address"),
        ("zhang", "unsendable"),
        ("zhang@", "unsendable"),
        ("@example.com", "unsendable"),
        ("zhang@example.com\r\nBcc: all@example.com", "unsendable"),
        ("zhang@example.com, li@example.com", "unsendable"),
        ("<zhang@example.com>", "unsendable"),
        ("张三@example.com", "unsendable"),  # only a server with SMTPUTF8 takes it
        ("\ud800@example.com", "unsendable"),
        ("z" * 65 + "@example.com", "unsendable"),
        ("zhang@-example.com", "unsendable"),
        ("zhang@[192.0.2.1]", "unsendable"),
        ("zhang..li@example.com", "unsendable"),
        ("zhang@" + "例" * 80 + ".cn", "unsendable"),
        ("a@" + "b." * 200 + "com", "unsendable"),
        ("support@acme.cn", "own_address"),
        ("Support+7788@ACME.cn", "own_address"),
        ("sales@客服.中国", "own_address"),
        ("Sales@XN--2LU5M.XN--fiqs8s".replace("2LU5M", "客服".encode("idna").decode()[4:]), "own_address"),
        ("desk@acme.cn", "own_address"),
        ("anybody@help.acme.cn", "own_address"),
        ("anybody+x@help.acme.cn", "own_address"),
    ],
)
def test_other_addresses_are_not(address: str, why: str) -> None:
    assert code(message(address)) == why


@pytest.mark.parametrize("auto", ["auto_reply", "bounce", "list", "system"])
def test_automatic_mail_is_not_acknowledged(auto: Any) -> None:
    assert code(message(auto=auto)) == "automatic"


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"mail_from": ""}, "null_sender"),
        ({"mail_from": "zhang@example.com"}, ""),
        ({"mail_from": None}, ""),
        ({"imported": True}, "imported"),
        ({"suspect": "too fast"}, "suspected_spam"),
        ({"reference": REFERENCE}, "follow_up"),
    ],
)
def test_what_the_channel_knows_counts(facts: dict[str, Any], why: str) -> None:
    assert code(message(), stored(**facts)) == why


@pytest.mark.parametrize(("verdict", "why"), [("fail", "unauthenticated"), ("none", ""), ("pass", "")])
def test_a_forged_sender_is_not_written_to(verdict: Any, why: str) -> None:
    assert code(message(authentication=Authentication(verdict=verdict))) == why


@pytest.mark.parametrize(("role", "why"), [("envelope", "own_address"), ("delivered_to", "own_address"), ("cc", "")])
def test_the_address_that_the_mail_came_to_is_ours(role: Any, why: str) -> None:
    # who sends themselves a copy is a customer all the same
    recipients = (Recipient(value="Zhang@example.com", role=role),)

    assert code(message(recipients=recipients)) == why


@pytest.mark.parametrize("field", ["in_reply_to", "references"])
def test_an_answer_to_an_acknowledgement_is_no_new_matter(field: str) -> None:
    thread = Thread(**{field: ("root@example.com", f"acknowledgement.{ID}@acme.cn")})

    assert code(message(thread=thread)) == "follow_up"


def test_what_comes_late_is_not_acknowledged() -> None:
    assert code(message(), later=86400) == ""
    assert code(message(), later=86401) == "late"


def test_a_reload_changes_whose_addresses_are_ours() -> None:
    channels = [{"mail": CHANNELS["mail"]}]
    acknowledgements = Acknowledgements(lambda: channels[-1], lambda: NOW)
    assert isinstance(acknowledgements(1, stored(), message("desk@acme.cn")), Letter)

    channels.append(CHANNELS)

    assert acknowledgements(1, stored(), message("desk@acme.cn")) == Suppressed(1, "mail", "own_address")


texts = st.text(max_size=60)


@given(texts, texts, texts, st.lists(texts, max_size=4), st.dictionaries(st.sampled_from(["mail_from"]), texts))
def test_no_message_is_an_error(address: str, subject: str, one: str, many: list[str], facts: dict[str, str]) -> None:
    thread = Thread(message_id=one, references=tuple(many))
    decided = decide(message(address, subject=subject, language=one, text=one, thread=thread), stored(**facts))

    assert not isinstance(decided, Suppressed) or decided.code != "internal"


# --- what it says -----------------------------------------------------------------------------------------------------


def letter(**fields: Any) -> Letter:
    return Letter(
        **{"seq": 1, "id": ID, "channel": "mail", "recipient": "z@example.com", "reference": REFERENCE, **fields}
    )


def parsed(raw: bytes) -> EmailMessage:
    return message_from_bytes(raw, policy=policy.default)


def bodies(mail: EmailMessage) -> tuple[str, str]:
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert plain is not None
    assert html is not None
    return plain.get_content().replace("\r\n", "\n"), html.get_content().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("known", "default", "spoken"), [("zh", "en", "zh"), ("en", "zh", "en"), ("", "zh", "zh"), ("", "en", "en")]
)
def test_the_language_is_the_message_s_or_the_channel_s(known: str, default: str, spoken: str) -> None:
    mail = parsed(compose(letter(language=known), block(language=default), KEY, NOW, TEMPLATES))

    greeting = {"zh": "您好", "en": "Hello"}[spoken]
    assert mail["Content-Language"] == spoken
    assert bodies(mail)[0].startswith(greeting)
    assert f'<html lang="{spoken}">' in bodies(mail)[1]
    assert REFERENCE in bodies(mail)[0]


def test_it_is_plain_mail_that_every_server_takes() -> None:
    raw = compose(
        letter(subject="打印机坏了" * 30), block(**{"from": "阿克米，客服 <support@例子.中国>"}), KEY, NOW, TEMPLATES
    )

    assert raw.isascii()
    assert all(len(line) <= 78 for line in raw.split(b"\r\n"))
    assert b"\n" not in raw.replace(b"\r\n", b"")
    mail = parsed(raw)
    assert mail["From"].addresses[0].addr_spec == "support@xn--fsqu00a.xn--fiqs8s"
    assert mail["From"].addresses[0].display_name == "阿克米，客服"
    assert not mail.defects


def test_a_form_s_message_has_nothing_to_thread_to() -> None:
    mail = parsed(compose(letter(subject="Printer"), block(language="en"), KEY, NOW, TEMPLATES))

    assert mail["Subject"] == f"Auto: received [{REFERENCE}] Printer"
    assert mail["In-Reply-To"] is None
    assert mail["References"] is None


def test_a_thread_is_kept_with_ids_longer_than_a_line() -> None:
    ids = tuple(f"{'x' * 120}.{n}@prod.outlook.example" for n in range(40))
    kept = decide(message(thread=Thread(message_id=ids[-1], references=ids[:-1])))
    assert isinstance(kept, Letter)

    raw = compose(kept, block(), KEY, NOW, TEMPLATES)

    assert f"\r\nIn-Reply-To: <{ids[-1]}>\r\nReferences: <{ids[0]}>\r\n <{ids[20]}>".encode() in raw
    assert parsed(raw)["References"].split()[-2:] == [f"<{ids[-2]}>", f"<{ids[-1]}>"]


def test_an_id_that_is_none_is_left_out() -> None:
    thread = Thread(message_id="7788", references=("a b", "x\r\ny", "<ok@x>", "é@x", ""))
    kept = decide(message(thread=thread))
    assert isinstance(kept, Letter)

    mail = parsed(compose(kept, block(), KEY, NOW, TEMPLATES))

    assert mail["In-Reply-To"] == "<7788>"  # a client of that kind knows its own
    assert mail["References"] == "<ok@x> <7788>"


def test_templates_are_the_operator_s() -> None:
    words = {
        "subject": "No. {{ reference }}",
        "text": {"en": "Dear {{ name or 'customer' }},\n\nwe have {{ subject }}.\n{{ sender }}"},
        "html": {"zh": "<p>{{ name }}：{{ reference }}</p>"},
    }
    fields = {"name": "<b>Li</b>", "subject": "a & b"}

    english = parsed(compose(letter(language="en", **fields), block(**words), KEY, NOW, TEMPLATES))
    chinese = parsed(compose(letter(language="zh", **fields), block(**words), KEY, NOW, TEMPLATES))

    assert english["Subject"] == f"No. {REFERENCE}"
    plain, html = bodies(english)
    assert plain == "Dear <b>Li</b>,\n\nwe have a & b.\nACME Support\n"
    assert "<p>Dear &lt;b&gt;Li&lt;/b&gt;,</p>\n<p>we have a &amp; b.<br>\nACME Support</p>" in html
    assert bodies(chinese)[1].strip() == f"<p>&lt;b&gt;Li&lt;/b&gt;：{REFERENCE}</p>"
    assert bodies(chinese)[0].startswith("您好")


def test_an_encoded_word_of_a_stranger_stays_what_it_is() -> None:
    # EmailMessage decodes it when it is given as a value, and writes the line break that is in it.
    word = "=?utf-8?q?=0D=0ABcc:_all@example.com?="

    raw = compose(letter(subject=word, recipient=f"{word}@x.example"), block(language="en"), KEY, NOW, TEMPLATES)

    assert b"Bcc" not in raw.replace(f"To: {word}@x.example".encode(), b"")
    assert parsed(raw)["Subject"] == f"Auto: received [{REFERENCE}] {word}"


def test_the_reply_address_is_plain_or_signed() -> None:
    plain = parsed(compose(letter(), block(reply_to="desk@acme.cn"), KEY, NOW, TEMPLATES))
    signed = parsed(compose(letter(), block(reply_to="signed"), KEY, NOW, TEMPLATES))
    none = parsed(compose(letter(), block(), KEY, NOW, TEMPLATES))

    assert plain["Reply-To"] == "desk@acme.cn"
    assert replyaddress.verify(signed["Reply-To"], KEY) == REFERENCE
    assert none["Reply-To"] is None


def test_a_template_that_fails_on_a_letter_is_told() -> None:
    with pytest.raises(Rejected) as caught:
        compose(letter(name=""), block(text="{{ name[0].upper() }}"), KEY, NOW, TEMPLATES)

    assert caught.value.code == "template"


def test_its_message_id_is_known_as_ours() -> None:
    mail = parsed(compose(letter(), block(), KEY, NOW, TEMPLATES))

    assert is_ours(mail["Message-ID"])
    assert not is_ours("<m1@customer.example>")


HOSTILE = st.text(max_size=40) | st.sampled_from(
    [
        "a\r\nBcc: all@example.com",
        "\r\n\r\nbody",
        "=?utf-8?q?=0D=0ABcc:_x?=",
        "\x85Bcc: x",
        "\u2028",
        "{{ 7 * 7 }}",
        "\0",
    ]
)


@given(HOSTILE, HOSTILE, HOSTILE, st.lists(HOSTILE, max_size=3))
def test_what_a_stranger_wrote_adds_no_header(subject: str, name: str, one: str, many: list[str]) -> None:
    given_ = message(subject=subject, thread=Thread(message_id=one, references=tuple(many)))
    given_ = given_.model_copy(update={"sender": Sender(name=name, identities=given_.sender.identities)})
    made = decide(given_)
    assert isinstance(made, Letter)
    settings = block(subject="{{ name }}{{ subject }}", text="{{ name }} {{ subject }}", reply_to="signed")

    mail = parsed(compose(made, settings, KEY, NOW, TEMPLATES))

    names = [name for name in mail if name not in {"In-Reply-To", "References"}]
    assert names == [
        *("To", "Subject", "From", "Reply-To", "Date", "Message-ID", "Auto-Submitted", "X-Auto-Response-Suppress"),
        *("X-Huiru-Acknowledgement", "MIME-Version", "Content-Type", "Content-Language"),
    ]
    assert mail["To"] == "zhang@example.com"
    assert mail.get_content_type() == "multipart/alternative"
    assert "49" not in bodies(mail)[0] or "49" in subject + name


# --- what is wrong with its settings ----------------------------------------------------------------------------------


def faults(tmp_path: Path, acknowledge: str, *more: str) -> list[str]:
    path = tmp_path / "g.yaml"
    channel = f"  app: {{type: api, keys: [{{name: a, sha256: {'ab' * 32}}}],\n    acknowledge: {acknowledge}}}"
    path.write_text("\n".join([*more, "channels:", channel]))
    try:
        load(path, {})
    except ConfigError as error:
        return [line.removeprefix(f"{tmp_path}/") for line in error.public.split("\n")]
    return []


SERVER = "outgoing_mail: {host: 127.0.0.1, tls: none}"


@pytest.mark.parametrize(
    "settings",
    [
        "{from: support@acme.cn}",
        '{from: "ACME, 客服 <support@acme.cn>", reply_to: signed, language: en}',
        '{from: support@acme.cn, subject: "No. {{ reference }}", html: {en: "<p>{{ name|upper }}"}}',
    ],
)
def test_good_settings(tmp_path: Path, settings: str) -> None:
    assert faults(tmp_path, settings, SERVER) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{}", ".from: the key is missing; add it"),
        ("{from: support}", ".from: is no e-mail address"),
        ("{from: a@acme.cn, form: x}", ".form: unknown key; did you mean from?"),
        ('{from: "a@acme.cn, b@acme.cn"}', ".from: is no e-mail address"),
        ("{from: a@acme.cn, reply_to: desk}", ".reply_to: is no e-mail address"),
        (
            f"{{from: {'s' * 36}@acme.cn, reply_to: signed}}",
            ".reply_to: signed needs an address in `from` with at most 35",
        ),
        (
            '{from: a@acme.cn, text: {zh: "{{ refrence }}"}}',
            ".text.zh: the template cannot be used: 'refrence' is undef",
        ),
        ('{from: a@acme.cn, subject: "{{ reference"}', ".subject: the template cannot be used: unexpected end of"),
        ('{from: a@acme.cn, html: {en: "{{ name.__class__.mro() }}"}}', ".html.en: the template cannot be used: "),
        ("{from: a@acme.cn, language: de}", ".language: must be one of: zh, en"),
        (
            "{from: a@acme.cn, max_per_sender_per_hour: 0}",
            ".max_per_sender_per_hour: must be greater than or equal to 1",
        ),
    ],
)
def test_a_fault_in_them_says_where_and_what(tmp_path: Path, settings: str, said: str) -> None:
    (fault,) = faults(tmp_path, settings, SERVER)

    assert fault.startswith("g.yaml:4: channels.app.acknowledge" + said)


def test_without_a_server_it_is_an_error(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "{from: support@acme.cn}")

    assert fault == (
        "g.yaml:3: channels.app.acknowledge: there is no server to send it through;"
        " add `outgoing_mail: {host: smtp.example.com, …}` to the file, or remove acknowledge"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{host: h, username: u}", ".username: a user and its password belong together; add password"),
        (
            "{host: h, username: u, password: p, tls: none}",
            ".tls: would show the password to the network; write startt",
        ),
        ("{host: h, tls: none, ca_file: /x}", ".ca_file: is for TLS; write tls: starttls or implicit, or remove"),
        ("{host: h, tls: ssl}", ".tls: must be one of: starttls, implicit, none"),
        ("{host: h, helo: a b}", ".helo: must match pattern"),
        ("{host: h, return_path: robot}", ".return_path: is no e-mail address"),
        ("{}", ".host: the key is missing; add it to outgoing_mail"),
    ],
)
def test_a_fault_in_the_server_s_settings(tmp_path: Path, settings: str, said: str) -> None:
    (fault,) = faults(tmp_path, "null", f"outgoing_mail: {settings}")

    assert fault.startswith(f"g.yaml:1: outgoing_mail{said}")


@pytest.mark.parametrize(("tls", "port"), [("starttls", 587), ("implicit", 465), ("none", 25)])
def test_the_usual_port(tmp_path: Path, tls: str, port: int) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(f"outgoing_mail: {{host: h, tls: {tls}}}\nchannels:\n  app: {{type: echo, secret: {'s' * 16}}}\n")

    mail = load(path, {}).outgoing_mail

    assert mail is not None
    assert mail.port_number == port
