"""A push of WeChat, decrypted: a message or an event of an official account or a mini-program, XML or JSON.

The facts hold what the connector knows: `appid`; `encrypted`, by which the sender is proven; `fetch`: whether
it can ask WeChat's server; `profile` (`name`, `unionid`, `language`), null or absent when it is not known but can be
asked for, `{}` when there is none to be had; `source`, where it is known. Or `unreadable`: why the push is none.

    theirs                                      ours
    FromUserName (and the account's appid)      sender.identities, conversation
    ToUserName                                  recipients
    CreateTime                                  sent_at
    MsgId                                       native_id, which the connector makes
    Content, Recognition                        text
    Location_X, Location_Y, Label               location, in GCJ-02; the label is the text too
    Title, Description, Url                     text, one on each line, and fields
    MediaId, ThumbMediaId (PicUrl, ThumbUrl)    wanted: image, voice, video, thumb; also fields
    MsgType `event`                             kind `event`
    the scene of a QR code                      fields.source
    everything else, of unknown types too       fields, by WeChat's names

developers.weixin.qq.com/doc/service/guide/product/message/Receiving_standard_messages.html and the pages beside it.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from gateway.contract import Draft, StoredMessage, Wanted
from gateway.envelope import Authentication, Identity, Location, Message, Omission, Recipient, Sender
from gateway.errors import Rejected
from gateway.text import one_line, plain_text, without_controls
from gateway.wechat.document import read

ACCOUNT = "wechat_account"
OPENID, UNIONID = "wechat_openid", "wechat_unionid"
NO_SECRET = "the channel has no secret, so it cannot fetch media"  # noqa: S105 - says that there is none
_PLACED = {"FromUserName", "ToUserName", "CreateTime", "MsgId", "Content", "Recognition"}
_PLACE = {"Location_X", "Location_Y", "Label"}
# What a message of a type says of the files that belong to it: the element with the media id, the one with the address
# where a picture can be had without it, and what we call it.
_Files = tuple[tuple[str, str, str], ...]
_VIDEO: _Files = (("MediaId", "", "video"), ("ThumbMediaId", "ThumbUrl", "thumb"))
_FILES: Mapping[str, _Files] = {
    "image": (("MediaId", "PicUrl", "image"),),
    "voice": (("MediaId", "", "voice"),),
    "video": _VIDEO,
    "shortvideo": _VIDEO,
    "miniprogrampage": (("ThumbMediaId", "ThumbUrl", "thumb"),),
}
_OTHER_FILES: _Files = (("MediaId", "PicUrl", "media"), ("ThumbMediaId", "ThumbUrl", "thumb"))
_VOICES = {"amr": "audio/amr", "speex": "audio/speex"}
_MEDIA_ID = re.compile(r"[!-~]{1,512}", re.ASCII)
_ADDRESS = re.compile(r"https?://[!-~]{1,2000}", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,10}", re.ASCII)
_DEGREES = re.compile(r"-?[0-9]{1,3}(\.[0-9]{1,15})?", re.ASCII)


def normalize(raw: StoredMessage) -> Draft:
    """Raises Rejected when the push cannot be read, or says nobody's name."""
    if reason := raw.facts.get("unreadable"):
        raise Rejected("unreadable", reason=str(reason))
    push, facts = read(raw.body), raw.facts
    openid = _line(push, "FromUserName")
    if not openid:
        raise Rejected("malformed", reason="the push has no FromUserName")
    files = tuple(_wanted(push))
    location = _location(push)
    text = _text(push)
    message = Message(
        kind="event" if push.get("MsgType") == "event" else "message",
        conversation=f"wechat:{facts['appid']}:{openid}",
        sent_at=_sent_at(push),
        sender=_sender(openid, facts),
        recipients=tuple(_recipients(push)),
        text=text,
        full_text=text,
        language=(facts.get("profile") or {}).get("language"),
        fields=_fields(push, location, facts),
        authentication=_authentication(facts),
        location=location,
        omissions=() if facts.get("fetch") else tuple(Omission(what=one.what, reason=NO_SECRET) for one in files),
    )
    return Draft(message, wanted=(*files, *_profile(openid, facts)) if facts.get("fetch") else ())


# Who and when


def _sender(openid: str, facts: Mapping[str, Any]) -> Sender:
    """An openid is one account's name for a person, a unionid that of all accounts of one owner."""
    encrypted, profile = bool(facts.get("encrypted")), facts.get("profile") or {}
    identities = [Identity(kind=OPENID, value=openid, verified=encrypted, account=facts["appid"])]
    if unionid := profile.get("unionid"):
        identities.append(Identity(kind=UNIONID, value=unionid, verified=encrypted))
    return Sender(name=profile.get("name"), identities=tuple(identities))


def _recipients(push: Mapping[str, Any]) -> Iterator[Recipient]:
    if account := _line(push, "ToUserName"):
        yield Recipient(kind=ACCOUNT, value=account)


def _authentication(facts: Mapping[str, Any]) -> Authentication:
    """A push that is not encrypted has a signature over its time and nonce, and none over what it says."""
    if facts.get("encrypted"):
        return Authentication(verdict="pass", methods={"wechat": "pass"})
    return Authentication(verdict="none", methods={"wechat": "none"})


def _sent_at(push: Mapping[str, Any]) -> datetime | None:
    seconds = _line(push, "CreateTime")
    return datetime.fromtimestamp(int(seconds), UTC) if _SECONDS.fullmatch(seconds) else None


# What


def _text(push: Mapping[str, Any]) -> str:
    if push.get("MsgType") in ("link", "miniprogrampage"):
        lines = (_line(push, name) for name in ("Title", "Description", "Url"))
        return "\n".join(line for line in lines if line)
    name = {"voice": "Recognition", "location": "Label"}.get(_line(push, "MsgType"), "Content")
    value = push.get(name)
    return plain_text(value) if isinstance(value, str) else ""


def _location(push: Mapping[str, Any]) -> Location | None:
    """WeChat's maps are in GCJ-02, as all in mainland China."""
    latitude, longitude = _line(push, "Location_X"), _line(push, "Location_Y")
    if push.get("MsgType") != "location" or not (_degrees(latitude, 90) and _degrees(longitude, 180)):
        return None
    label = _line(push, "Label") or None
    return Location(latitude=float(latitude), longitude=float(longitude), label=label, system="gcj02")


def _degrees(text: str, most: int) -> bool:
    return _DEGREES.fullmatch(text) is not None and abs(float(text)) <= most


def _fields(push: Mapping[str, Any], location: Location | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    placed = _PLACED | _PLACE if location else _PLACED
    if push.get("MsgType") not in ("text", "voice"):  # an unknown type may say anything under these names
        placed = placed - {"Content", "Recognition"}
    fields = {without_controls(name): _clean(value) for name, value in push.items() if name not in placed}
    return fields | {"source": facts["source"]} if facts.get("source") else fields


def _clean(value: Any) -> Any:
    """Without control characters. `read` bounds the depth, and gives nothing but texts, lists and dicts."""
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {without_controls(name): _clean(item) for name, item in value.items()}
    return without_controls(value)


# What has to be fetched


def _wanted(push: Mapping[str, Any]) -> Iterator[Wanted]:
    """The source is a media id and, behind a blank, the address to try when the id no longer serves."""
    if push.get("MsgType") in ("event", "text"):
        return
    for id_, address, what in _FILES.get(_line(push, "MsgType"), _OTHER_FILES):
        found = [_line(push, id_)] if _MEDIA_ID.fullmatch(_line(push, id_)) else [""]
        found += [_line(push, address)] if _ADDRESS.fullmatch(_line(push, address)) else []
        if any(found):
            yield Wanted(what, " ".join(found), content_type=_content_type(push, what))


def _content_type(push: Mapping[str, Any], what: str) -> str:
    return _VOICES.get(_line(push, "Format").lower(), "") if what == "voice" else ""


def _profile(openid: str, facts: Mapping[str, Any]) -> Iterator[Wanted]:
    if facts.get("profile") is None:
        yield Wanted("profile", openid)


def _line(push: Mapping[str, Any], name: str) -> str:
    value = push.get(name)
    return one_line(value) if isinstance(value, str) else ""
