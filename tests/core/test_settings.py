"""The configuration file: what it gives, and what an operator is told about each kind of fault."""

import json
import sys
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import connectors
from gateway.address import Address
from gateway.configfile import MAX_FILE_BYTES
from gateway.errors import ConfigError
from gateway.settings import GatewaySettings, load

PIGEON = """
from typing import Annotated, Literal
from pydantic import Field, SecretStr, field_validator, model_validator
from gateway.address import Listen
from gateway.contract import ChannelSettings, Settings, WebhookConnector

class Seed(Settings):
    type: Literal["seed"]
    grams: int

class Bread(Settings):
    type: Literal["bread"]
    slices: int
    toasted: bool = False

class Owner(Settings):
    name: str

class PigeonSettings(ChannelSettings):
    food: tuple[Annotated[Seed | Bread, Field(discriminator="type")], ...] = ()
    owner: str | Owner = "nobody"
    token: SecretStr | None = None
    ring: str = ""
    listen: Listen | None = None

    @field_validator("ring")
    @classmethod
    def _round(cls, ring: str) -> str:
        if ring.startswith("square"):
            raise ValueError(f"the ring {ring} is not round")
        return ring

    @field_validator("token", mode="before")
    @classmethod
    def _chatty(cls, token: object) -> object:
        if str(token).startswith("bad"):
            raise ValueError(f"the token {token} is bad")
        return token

class Connector(WebhookConnector):
    Settings = PigeonSettings
    redelivers = False
"""
LEAST = "channels:\n  loft: {type: pigeon}\n"
SECRET = "n0t-t0-be-seen-by-anybody-at-all"


@pytest.fixture(autouse=True, scope="module")
def pigeon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A channel type with every shape of setting."""
    folder = tmp_path_factory.mktemp("connectors")
    (folder / "pigeon.py").write_text(PIGEON)
    connectors.__path__.append(str(folder))
    yield
    connectors.__path__.remove(str(folder))
    sys.modules.pop("connectors.pigeon", None)


class Folder:
    """A folder with a configuration file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def settings(self, text: str | bytes, env: Mapping[str, str] | None = None) -> GatewaySettings:
        content = text.encode() if isinstance(text, str) else text
        (self.path / "g.yaml").write_bytes(content)
        return load(self.path / "g.yaml", env or {})

    def faults(self, text: str | bytes, env: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.settings(text, env)
        return [line.removeprefix(f"{self.path}/") for line in caught.value.public.split("\n")]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# What a good file gives


def test_the_least_file_has_safe_defaults(folder: Folder) -> None:
    settings = folder.settings(LEAST)

    assert settings.name == "huiru"
    assert settings.state_dir == Path("/var/lib/huiru")
    assert settings.secret is None
    assert settings.http.listen == Address("0.0.0.0", 8080)
    assert settings.admin.listen == Address("127.0.0.1", 9090)
    assert settings.redis.is_embedded
    assert settings.stream.max_len is None
    assert settings.spool.max_bytes == 10 * 2**30
    assert settings.channels["loft"].type == "pigeon"


def test_a_full_file(folder: Folder) -> None:
    settings = folder.settings(
        """
        name: acme
        http:
          listen: "[::1]:80"
          public_url: https://support.acme.cn/inbox/
          trusted_proxies: [10.0.0.0/8, "::1"]
          memory_body_bytes: 1 MiB
        redis: {url: "rediss://redis.acme.cn:6380/2", ca_file: /etc/ca.pem, cert_file: /c.pem, key_file: /k.pem}
        spool: {max_bytes: 5GB, min_free_bytes: 1024}
        blobs: {url: "s3://acme-support/attachments/"}
        channels:
          loft: {type: pigeon, tags: [air], rate: {per_minute: 0.5, burst: 1}, food: [{type: bread, slices: 2}]}
        """
    )

    assert settings.http.listen == Address("::1", 80)
    assert str(settings.http.listen) == "[::1]:80"
    assert settings.http.base_url() == "https://support.acme.cn/inbox"
    assert settings.http.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert (settings.http.memory_body_bytes, settings.spool.max_bytes) == (2**20, 5 * 10**9)
    assert settings.blobs.url == "s3://acme-support/attachments"
    assert settings.channels["loft"].tags == ("air",)


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("[::]:81", "http://127.0.0.1:81"),
        ("192.0.2.7:82", "http://192.0.2.7:82"),
        ("[::1]:83", "http://[::1]:83"),
    ],
)
def test_without_a_public_url_it_is_where_we_listen(folder: Folder, listen: str, url: str) -> None:
    http = folder.settings(f'http: {{listen: "{listen}"}}\n{LEAST}').http

    assert http.base_url() == url
    assert http.base_url(port=999) == url.rpartition(":")[0] + ":999"


def test_a_relative_state_folder_is_below_the_current_one(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.path)

    assert folder.settings("state_dir: here\n" + LEAST).state_dir == folder.path / "here"


@pytest.mark.parametrize(
    ("url", "rest", "username"),
    [
        ("redis://bob:hunter%402@h:6379/1", "redis://h:6379/1", "bob"),
        ("rediss://:hunter%402@h", "rediss://h", None),
        ("unix://bob:hunter%402@/run/redis.sock?db=1", "unix:///run/redis.sock?db=1", "bob"),
    ],
)
def test_the_redis_address_gives_up_its_credentials(folder: Folder, url: str, rest: str, username: str | None) -> None:
    redis = folder.settings(f"redis: {{url: '{url}'}}\n{LEAST}").redis

    assert (redis.url, redis.username) == (rest, username)
    assert redis.password is not None
    assert redis.password.get_secret_value() == "hunter@2"
    assert "hunter" not in repr(redis) + redis.shown_url


def test_settings_print_no_secret(folder: Folder) -> None:
    settings = folder.settings(f"secret: {SECRET}\nredis: {{password: {SECRET}}}\n{LEAST}")

    assert SECRET not in repr(settings)
    assert SECRET not in settings.model_dump_json()


def test_anchors_and_merge_keys(folder: Folder) -> None:
    settings = folder.settings(
        """
        x-bird: &bird {type: pigeon, queue: air, ring: r1}
        channels:
          one: *bird
          two: {<<: *bird, ring: r2}
          three: {<<: [{queue: sea}, *bird]}
        """
    )

    assert [(channel.queue, channel.ring) for channel in settings.channels.values()] == [  # type: ignore[attr-defined]  # the type is made by this test
        ("air", "r1"),
        ("air", "r2"),
        ("sea", "r1"),
    ]


def test_yaml_is_1_2_and_dates_are_text(folder: Folder) -> None:
    settings = folder.settings("channels:\n  loft: {type: pigeon, queue: no, ring: 2026-01-01, priority: 1:20}\n")

    assert (settings.channels["loft"].queue, settings.channels["loft"].priority) == ("no", "1:20")


# Interpolation


@pytest.mark.parametrize(
    ("written", "queue"),
    [
        ("${QUEUE}", "east"),
        ("a ${QUEUE} b ${QUEUE}", "a east b east"),
        ("${NONE:-west}", "west"),
        ("${EMPTY:-west}", "west"),
        ("${EMPTY}", ""),
        ("${NONE:-}", ""),
        ("$${QUEUE} $QUEUE $$", "${QUEUE} $QUEUE $$"),
        ("${file:queue.txt}", "south\n"),
        ("${NESTED}", "${QUEUE}"),
    ],
)
def test_interpolation(folder: Folder, written: str, queue: str) -> None:
    (folder.path / "queue.txt").write_text("south\n\n")

    settings = folder.settings(
        f"channels:\n  loft: {{type: pigeon, queue: '{written}'}}",
        {"QUEUE": "east", "EMPTY": "", "NESTED": "${QUEUE}"},
    )

    assert settings.channels["loft"].queue == queue


def test_an_interpolated_value_may_be_a_number_or_a_switch(folder: Folder) -> None:
    settings = folder.settings(
        "stream: {batch: '${BATCH}'}\nspool: {max_bytes: '${SIZE}'}\n"
        "channels: {loft: {type: pigeon, food: [{type: bread, slices: 1, toasted: '${TOAST}'}]}}",
        {"BATCH": "7", "SIZE": "2 GiB", "TOAST": "true"},
    )

    assert (settings.stream.batch, settings.spool.max_bytes) == (7, 2 << 30)
    assert settings.channels["loft"].food[0].toasted is True  # type: ignore[attr-defined]  # the type is made by this test


def test_an_empty_variable_switches_an_optional_key_off(folder: Folder) -> None:
    settings = folder.settings(
        "secret: ${NONE:-}\nredis: {url: '${NONE:-}', password: '${NONE:-}'}\nblobs: {url: '${NONE:-}'}\n" + LEAST
    )

    assert (settings.secret, settings.redis.password, settings.blobs.url) == (None, None, None)
    assert settings.redis.is_embedded


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("${NONE}", "the environment variable NONE is not set; set it or write ${NONE:-default}"),
        ("${file:none.txt}", "the file none.txt cannot be read: No such file or directory"),
        ("${file:.}", "the file . is not a regular file"),
        ("${file:big}", "the file big is larger than 65536 bytes"),
        ("${file:binary}", "the file binary is not UTF-8 text (line 1)"),
        ("${NONE", "write ${NAME}, ${NAME:-default} or ${file:PATH}; for a plain ${ write $${"),
        ("${NONE:-${QUEUE}}", "write ${NAME}, ${NAME:-default} or ${file:PATH}; for a plain ${ write $${"),
        ("${HALF}", "holds a NUL or half a character; text is expected"),
    ],
)
def test_interpolation_that_fails(folder: Folder, written: str, said: str) -> None:
    (folder.path / "big").write_bytes(b"x" * 70_000)
    (folder.path / "binary").write_bytes(b"\xff\xfe")

    faults = folder.faults(f"channels:\n  loft:\n    type: pigeon\n    queue: '{written}'", {"HALF": "\udcff"})

    assert faults == [f"g.yaml:4: channels.loft.queue: {said}"]


# Faults in the values: one line each, with the line, the key and the remedy

FAULTS = [
    ("htpp: {}", "htpp: unknown key; did you mean http?"),
    (
        "zzzzz: 1",
        "zzzzz: unknown key; the keys here are: admin, blobs, channels, http, log, media, name, normalize, ",
    ),
    ("http: {lisen: 1}", "http.lisen: unknown key; did you mean listen?"),
    ("http:", "http: expected a mapping (`key: value` lines), found nothing; give a value or remove the key"),
    ("http: [1]", "http: expected a mapping (`key: value` lines), found a list"),
    ("http: {listen: 8080}", 'http.listen: expected HOST:PORT, for example "127.0.0.1:8080" or "[::1]:8080"'),
    ("http: {listen: 'h:70000'}", "http.listen: the port is larger than 65535"),
    ("http: {listen: '300.1.1.1:80'}", "http.listen: the host is not a valid IP address"),
    ("http: {listen: '[1.2.3.4]:80'}", "http.listen: brackets are for IPv6 addresses, and only for them"),
    ("http: {public_url: acme.cn}", "http.public_url: expected an address such as https://support.example.com"),
    ("http: {public_url: 'http://a/?b'}", "http.public_url: the address must not have a ? or # part"),
    ("http: {public_url: 'http://[a'}", "http.public_url: is not a valid address; "),
    (
        "http: {trusted_proxies: [10.0.0.1/8]}",
        "http.trusted_proxies[0]: expected a network such as 10.0.0.0/8 (with no bits",
    ),
    ("http: {trusted_proxies: 10.0.0.0/8}", "http.trusted_proxies: expected a list, found text"),
    ("http: {trusted_proxies: [1]}", "http.trusted_proxies[0]: expected a network such as 10.0.0.0/8"),
    ("http: {max_inflight: many}", "http.max_inflight: expected a whole number, found text"),
    ("http: {max_inflight: 0}", "http.max_inflight: must be greater than or equal to 1"),
    ("http: {max_inflight: 1.5}", "http.max_inflight: expected a whole number, found a number"),
    ("http: {max_inflight: .inf}", "http.max_inflight: not a valid float value"),
    ("name: 123", "name: expected text, found a number; put it in quotes"),
    ("name: true", "name: expected text, found true or false; put it in quotes"),
    ("name: Acme", "name: a name is 1 to 63 characters of a-z, 0-9 and -"),
    ("secret: short", "secret: is shorter than 32 characters; make one by: openssl rand -hex 32"),
    ("log: {level: inf}", "log.level: must be one of: debug, info, warning, error; did you mean info?"),
    (
        "spool: {max_bytes: 1 GiBB}",
        "spool.max_bytes: expected a size in bytes or with a unit, as in 64 MiB, found text",
    ),
    ("redis: {url: 'http://x'}", "redis.url: expected embedded, redis://HOST:6379/0, rediss://"),
    ("redis: {url: 'redis:///0'}", "redis.url: the address names no server; "),
    ("redis: {url: 'redis://h/zero'}", "redis.url: the part behind the host is the database's number, such as /0"),
    ("redis: {url: 'redis://h?ssl=1'}", "redis.url: the only option an address may have is ?db=N"),
    ("redis: {url: 'redis://h:66666'}", "redis.url: is not a valid address; "),
    ("redis: {url: 'redis://:a@h', password: b}", "redis.password: is in url too; give it once"),
    ("redis: {cert_file: /c}", "redis.cert_file: a certificate and its key belong together; add key_file"),
    ("redis: {key_file: /k}", "redis.key_file: a certificate and its key belong together; add cert_file"),
    ("redis: {ca_file: /c, url: 'redis://h'}", "redis.ca_file: is for TLS; write rediss:// in url, or remove the key"),
    ("stream: {name: 'a{b}'}", "stream.name: a stream's name is 1 to 200 characters without spaces"),
    ("state_dir: ~nobody-we-know/x", "state_dir: ~ stands for a home folder, and there is no such user"),
    ("blobs: {url: '/tmp'}", "blobs.url: expected s3://BUCKET or s3://BUCKET/PREFIX"),
    ("log: {level: info, level: debug}", "log.level: given twice, first in line 3; remove one"),
    ("log: {level: !mine info}", "log.level: the tag !mine is not supported; leave it out"),
    ("log: {level: !!int info}", "log.level: not a valid int value"),
    ("log: !!set {info}", "log: the tag tag:yaml.org,2002:set is not supported; leave it out"),
    ("stream: &a {name: *a}", "stream.name: an alias that contains itself"),
    ("404: x", "the key 404 is not text; put it in quotes"),
    ("? [a]\n: x", "the key is not text; put it in quotes"),
    ("<<: 7", "`<<` takes a mapping or a list of them"),
    ('name: "a\\0"', "name: holds a NUL or half a character; text is expected"),
]


@pytest.mark.parametrize(("line", "said"), FAULTS)
def test_a_fault_says_where_what_and_how_to_mend_it(folder: Folder, line: str, said: str) -> None:
    faults = folder.faults(f"# first\n\n{line}\n{LEAST}")

    assert len(faults) == 1
    assert faults[0].startswith(f"g.yaml:3: {said}") or faults[0].startswith(f"g.yaml: {said}")


CHANNEL_FAULTS = [
    ("type: pigoen", "type: unknown channel type pigoen; did you mean pigeon? there are: "),
    ("queue: x", "type: the key is missing; add it to channels.loft"),
    ("type: 7", "type: expected text, found a number; put it in quotes"),
    ("{type: pigeon, tagz: []}", "tagz: unknown key; did you mean tags?"),
    ("{type: pigeon, food: [{type: sed, grams: 1}]}", "food[0].type: must be one of: seed, bread; did you mean seed?"),
    ("{type: pigeon, food: [{grams: 1}]}", "food[0].type: the key is missing; add it"),
    ("{type: pigeon, food: [{type: seed}]}", "food[0].grams: the key is missing; add it to channels.loft.food[0]"),
    ("{type: pigeon, food: [{type: seed, grams: 1, gram: 1}]}", "food[0].gram: unknown key; did you mean grams?"),
    ("{type: pigeon, food: [{type: bread, slices: 1, grams: 1}]}", "food[0].grams: unknown key; the keys here are: "),
    ("{type: pigeon, owner: 5}", "owner: expected text or a mapping (`key: value` lines), found a number; put it in"),
    ("{type: pigeon, owner: {nam: x, name: y}}", "owner.nam: unknown key; did you mean name?"),
    ("{type: pigeon, ring: square one}", "ring: the ring square one is not round"),
    ("{type: pigeon, rate: {per_minute: 1}}", "rate.burst: the key is missing; add it to channels.loft.rate"),
    ("{type: pigeon, rate: {per_minute: .nan, burst: 1}}", "rate.per_minute: not a valid float value"),
]


@pytest.mark.parametrize(("block", "said"), CHANNEL_FAULTS)
def test_a_fault_in_a_channel(folder: Folder, block: str, said: str) -> None:
    faults = folder.faults(f"channels:\n  loft:\n    {block}\n")

    assert len(faults) == 1
    assert faults[0].startswith((f"g.yaml:3: channels.loft.{said}", f"g.yaml:2: channels.loft.{said}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("channels: {}", "g.yaml:1: channels: there is none; add a channel, for example `app: {type: api, …}`"),
        ("name: a", "g.yaml: channels: the key is missing; add it to the file"),
        ("channels: [a]", "g.yaml:1: channels: expected a mapping (`key: value` lines), found a list"),
        ("channels: {a: }", "g.yaml:1: channels.a: expected a mapping (`key: value` lines), found nothing; give a"),
        ("channels: {A b: {type: pigeon}}", 'g.yaml:1: channels."A b": a name is 1 to 63 characters of a-z, 0-9 and -'),
    ],
)
def test_a_fault_of_the_channels(folder: Folder, text: str, said: str) -> None:
    faults = folder.faults(text)

    assert len(faults) == 1
    assert faults[0].startswith(said)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("admin: {listen: '0.0.0.0:8080'}", "1: admin.listen: is the address of http.listen too; give each its own"),
        ("redis:\n  embedded_port: 9090", "2: redis.embedded_port: is the address of admin.listen too; give each"),
    ],
)
def test_two_listeners_cannot_share_an_address(folder: Folder, lines: str, said: str) -> None:
    assert folder.faults(f"{lines}\n{LEAST}")[0].startswith(f"g.yaml:{said}")


def test_a_channel_cannot_take_another_listeners_address(folder: Folder) -> None:
    faults = folder.faults("channels:\n  loft: {type: pigeon, listen: 'localhost:8080'}\n")

    assert faults == ["g.yaml:2: channels.loft.listen: is the address of http.listen too; give each its own port"]


def test_any_number_of_listeners_may_take_a_free_port(folder: Folder) -> None:
    folder.settings(
        "http: {listen: 'localhost:0'}\nadmin: {listen: 'localhost:0'}\nredis: {embedded_port: 0}\n" + LEAST
    )


def test_all_faults_come_at_once_in_the_order_of_the_file(folder: Folder) -> None:
    faults = folder.faults(
        "channels:\n  loft: {type: pigeon, rink: 1}\n  two: {type: owll}\n"
        "http:\n  public_url: ${NONE}\n  body: 1\nname: 7\n"
    )

    assert [fault.split(":")[1] for fault in faults] == ["2", "3", "5", "6", "7"]


# Secrets


@pytest.mark.parametrize(
    "text",
    [
        f"secret: [{SECRET}]",
        f"secret: {{{SECRET}: 1}}",
        "secret: {a: '${S}'}",
        "name: ${S}",
        "log: {level: '${S}'}",
        "http: {public_url: '${S}'}",
        "http: {listen: '${S}'}",
        "http: {trusted_proxies: ['${S}']}",
        "redis: {url: 'redis://:${S}@h:1/x'}",
        "redis: {url: '${S}'}",
        "redis: {pasword: '${S}'}",
        "blobs: {url: '${S}'}",
        "spool: {max_bytes: '1 ${S}'}",
        "state_dir: ['${S}']",
        "channels: {loft: {type: '${S}'}}",
        "channels: {loft: {type: pigeon, token: 'bad ${S}'}}",
        f"channels: {{loft: {{type: pigeon, token: bad-{SECRET}}}}}",
        "channels: {loft: {type: pigeon, ring: 'square ${S}'}}",
        "channels: {loft: {type: pigeon, ring: 'square ${file:s}'}}",
        "channels: {loft: {type: pigeon, food: [{type: '${S}'}]}}",
        f"redis: {{password: {SECRET}, password: {SECRET}}}",
        f"redis: {{password: {SECRET}\nname: a",
        f'redis: {{password: "{SECRET}\nname: a',
        f"redis:\n  password: !wrong {SECRET}",
        f"redis:\n  password: *{SECRET[3:4]}",
    ],
)
def test_no_fault_repeats_a_secret(folder: Folder, text: str) -> None:
    (folder.path / "s").write_text(SECRET)

    faults = folder.faults(text, {"S": SECRET})

    assert faults
    assert not any(SECRET in fault and f"{{{SECRET}: 1}}" not in text for fault in faults)


# Faults of the file as a whole


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"none.yaml: cannot be read: No such file or directory; name another file by "
    ):
        load(tmp_path / "none.yaml", {})


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a regular file"):
        load(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "g.yaml:1: expected keys such as `channels:`; the file holds none"),
        ("# nothing\n", "g.yaml:1: expected keys such as `channels:`; the file holds none"),
        ("- a\n", "g.yaml:1: expected keys such as `channels:`; the file holds none"),
        ("a: [", "g.yaml:1:5: not valid YAML: while parsing a flow node, expected the node content, but found"),
        ("a: 1\n\tb: 2", "g.yaml:2:1: not valid YAML: "),
        ("a: *b", "g.yaml:1:4: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 1", "g.yaml:2:1: not valid YAML: expected a single document in the stream, but found another"),
        ("a: \x01", "g.yaml: not valid YAML: unacceptable character"),
        (b"a: 1\nb: \xff", "g.yaml: is not UTF-8 text (line 2)"),
        (b"#" * (MAX_FILE_BYTES + 1), "g.yaml: is larger than 1048576 bytes"),
        ("a: " + "[" * 2000, "g.yaml:1:67: not valid YAML: maximum depth"),
        (
            "a: &a [0,0,0,0,0,0,0,0,0,0]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
            "g.yaml: holds more than 50000 values",
        ),
    ],
)
def test_a_file_that_is_no_configuration(folder: Folder, text: str | bytes, said: str) -> None:
    faults = folder.faults(text)

    assert len(faults) == 1
    assert faults[0].startswith(said)


def test_a_byte_order_mark_does_no_harm(folder: Folder) -> None:
    assert folder.settings(b"\xef\xbb\xbf" + LEAST.encode()).channels


# Whatever is in the file

YAML_LIKE = st.from_regex(
    r"((name|state_dir|http|listen|redis|url|channels|loft|food): |type: pigeon|\n( {2,4}|---\n|\.\.\.\n)?"
    r"|[-{}\[\],:'\"#~>|?中]|[&*]a |<<: |!!(int|set|float|bool|null) |!x |%YAML 1\.1\n|0x1|1e9|\.nan|\\0"
    r"|\$\{A\}|\$\{file:any\.yaml\}|\$\{|\$\$)*",
    fullmatch=True,
)


@given(st.text() | YAML_LIKE | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_text_gives_settings_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "replace"))

    said = ""
    try:
        settings = load(path, {"A": "a"})
    except ConfigError as error:
        said = error.public
    assert all(line.startswith(str(path)) and line.isprintable() for line in said.split("\n")) or settings.channels


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MODELS = GatewaySettings.model_fields


@given(st.dictionaries(st.sampled_from(sorted(MODELS)), VALUES), VALUES)
def test_any_values_give_settings_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, object], pigeon: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.yaml"
    document = data | {"channels": {"loft": {"type": "pigeon", "food": pigeon, "rate": pigeon}, "b": pigeon}}
    path.write_text(json.dumps(document))  # JSON is YAML

    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert all(line.startswith(str(path)) and line.isprintable() for line in caught.value.public.split("\n"))
