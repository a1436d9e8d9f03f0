"""Passive replies: what the answer to a push tells WeChat to do. Written by wechatpy, or as JSON where the push was.

wechatpy puts texts into CDATA as they are, which a customer's `]]>` would end: it is cut in two here.
Source: developers.weixin.qq.com/doc/service/guide/dev/push/ (passive replies)
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
from wechatpy.replies import BaseReply, TextReply, TransferCustomerServiceReply

from gateway.errors import Rejected
from gateway.text import without_controls
from gateway.wechat.document import Form


def text_reply(fields: Mapping[str, Any], form: Form, text: str, now: datetime) -> bytes:
    """The account says `text` to who sent the push. Raises Rejected("malformed") when it names no sender."""
    addresses = _addresses(fields)
    if form == "xml":
        return _rendered(TextReply(**_safe(addresses), content=_in_cdata(text), time=int(now.timestamp())))
    return _document(addresses, "text", now, {"Content": without_controls(text)})


def transfer_reply(fields: Mapping[str, Any], form: Form, now: datetime) -> bytes:
    """WeChat is to hand the message to the agents in its own customer service tool."""
    addresses = _addresses(fields)
    if form == "xml":
        return _rendered(TransferCustomerServiceReply(**_safe(addresses), time=int(now.timestamp())))
    return _document(addresses, "transfer_customer_service", now, {})


def _addresses(fields: Mapping[str, Any]) -> dict[str, str]:
    """As wechatpy names them, the other way round than in the push."""
    ours, theirs = fields.get("ToUserName"), fields.get("FromUserName")
    if not ours or not theirs or not isinstance(ours, str) or not isinstance(theirs, str):
        raise Rejected("malformed", "the push cannot be read", reason="it does not say from whom and to whom it is")
    return {"source": ours, "target": theirs}


def _safe(addresses: Mapping[str, str]) -> dict[str, str]:
    return {name: _in_cdata(value) for name, value in addresses.items()}


def _in_cdata(text: str) -> str:
    return without_controls(text).replace("]]>", "]]]]><![CDATA[>")


def _rendered(reply: BaseReply) -> bytes:
    rendered: str = reply.render()
    return rendered.encode()


def _document(addresses: Mapping[str, str], type_: str, now: datetime, content: Mapping[str, str]) -> bytes:
    return orjson.dumps(
        {
            "ToUserName": addresses["target"],
            "FromUserName": addresses["source"],
            "CreateTime": int(now.timestamp()),
            "MsgType": type_,
            **content,
        }
    )
