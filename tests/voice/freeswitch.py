"""Bodies as mod_json_cdr and mod_xml_cdr make them: written after their source code, not with it.

signalwire/freeswitch: mod_json_cdr.c @02d6aed, mod_xml_cdr.c @01eb776, switch_ivr.c, switch_utils.c.
"""

import base64
import json
from typing import Any
from xml.sax.saxutils import escape, quoteattr

UNSAFE = b'\r\n "#%&+:;<=>?@[\\]^`{|}'
FORM = "application/x-www-form-urlencoded"
BASE64 = "application/x-www-form-base64-encoded"
PLAIN = "application/x-www-form-plaintext"

A_LEG = "f2b0c9f4-0000-4000-8000-00000000000a"
B_LEG = "f2b0c9f4-0000-4000-8000-00000000000b"
VARIABLES = {
    "direction": "inbound",
    "uuid": A_LEG,
    "sip_call_id": "a+b/c==@10.0.0.1",
    "caller_id": '"张三" <13800138000>',
    "hangup_cause": "ORIGINATOR_CANCEL",
    "digits_dialed": "none",
    "start_epoch": "1764000000",
    "answer_epoch": "0",
    "bridge_epoch": "0",
    "end_epoch": "1764000020",
    "billsec": "0",
    "waitsec": "20",
    "sip_hangup_disposition": "recv_cancel",
    "note": "90% & more",
}
PROFILE = {
    "caller_id_name": "张三",
    "caller_id_number": "13800138000",
    "destination_number": "4008001234",
    "uuid": A_LEG,
}


def url_encode(text: str, room: int | None = None) -> str:
    """switch_url_encode; `room` is the buffer it is given, one byte of which it keeps for itself."""
    out, limit = "", (room if room is not None else 3 * len(text.encode()) + 1) - 1
    for byte in text.encode():
        piece = f"%{byte:02X}" if not 0x20 <= byte <= 0x7E or byte in UNSAFE else chr(byte)
        if len(out) + len(piece) > limit:
            break
        out += piece
    return out


def json_cdr(variables: dict[str, str], profiles: list[dict[str, Any]], encode_values: bool = True) -> str:
    """switch_ivr_generate_json_cdr: the buffer for a value is as long as it can get, and lacks the ending zero."""
    values = {
        name: url_encode(value, 3 * len(value.encode())) if encode_values else value
        for name, value in variables.items()
    }
    data = {"state": "CS_REPORTING", "direction": variables["direction"]}
    head = json.dumps({"core-uuid": "c0", "switchname": "pbx", "channel_data": data, "variables": values})
    # cJSON_AddItemToObject with a name that is there already: it is there twice then.
    flows = "".join(f', "callflow": {json.dumps({"dialplan": "XML", "caller_profile": one})}' for one in profiles)
    return head[:-1] + flows + "}"


def xml_cdr(variables: dict[str, str], profiles: list[dict[str, Any]]) -> str:
    """switch_ivr_generate_xml_cdr: values are always URL-encoded, those of profiles never."""
    values = "".join(f"<{name}>{url_encode(value)}</{name}>" for name, value in variables.items())
    flows = "".join(
        f"<callflow dialplan={quoteattr('XML')}>{_element('caller_profile', one)}</callflow>" for one in profiles
    )
    data = f"<channel_data><state>CS_REPORTING</state><direction>{variables['direction']}</direction></channel_data>"
    content = f"{data}<variables>{values}</variables>{flows}"
    return f'<?xml version="1.0"?>\n<cdr core-uuid="c0" switchname="pbx">{content}</cdr>\n'


def _element(name: str, content: Any) -> str:
    if not isinstance(content, dict):
        return f"<{name}>{escape(content)}</{name}>"
    return f"<{name}>{''.join(_element(key, value) for key, value in content.items())}</{name}>"


def sent(record: str, encode: str) -> tuple[bytes, str]:
    """The body and its Content-Type by the module's parameter `encode`."""
    if encode == "true":
        return f"cdr={url_encode(record)}".encode(), FORM
    if encode == "base64":
        return b"cdr=" + base64.b64encode(record.encode()), BASE64
    if encode == "textxml":
        return record.encode(), "text/xml"
    is_xml = record.startswith("<")
    return (f"cdr={record}".encode(), PLAIN) if is_xml else (record.encode(), "application/json")
