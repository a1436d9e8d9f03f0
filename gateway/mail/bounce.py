"""What a report of delivery says: whom it could not reach, and why (RFC 3464, RFC 6522, and what came before them).

A report has a machine-readable part, or none: qmail, Exim, Exchange, Domino and the large Chinese providers write
prose. Prose is read only where the mail is known to come from a mail system: a person who writes about a bounce quotes
it word for word.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.text import one_line

MAX_PROSE_CHARS = 32 << 10  # the reports of the wordiest system are a tenth of that
_MAX_LINE_CHARS = 1000
_MAX_LINES = 200  # in which a reason is looked for
_MAX_STATUS_BYTES = 512 << 10
_MAX_RETURNED_BYTES = 64 << 10
_MAX_RECIPIENTS = 1000
_MAX_DIAGNOSTIC_CHARS = 1000

STATUS_TYPES = frozenset({"message/delivery-status", "message/global-delivery-status"})
RETURNED_TYPES = frozenset(
    {"message/rfc822", "message/global", "message/rfc822-headers", "text/rfc822-headers", "message/global-headers"}
)


class Leaf(Protocol):
    """What is read of a part."""

    @property
    def content_type(self) -> str: ...
    @property
    def body(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Report:
    """`failed`: something was given up; else it is late, or arrived. `recipients` are those it was given up for."""

    failed: bool
    recipients: tuple[str, ...] = ()
    status: str = ""
    diagnostic: str = ""
    message_id: str = ""

    def fields(self) -> dict[str, object]:
        """The envelope's fields; what the report does not say is not in them."""
        said = {
            "bounce_recipients": list(self.recipients),
            "bounce_status": self.status,
            "bounce_diagnostic": self.diagnostic,
            "bounce_message_id": self.message_id,
        }
        return {name: value for name, value in said.items() if value}


@dataclass(slots=True)
class _Found:
    """One recipient of a report in prose, with the lines that speak of it."""

    address: str
    lines: list[str] = field(default_factory=list)


# Subjects of delivery reports, from their first character. A reply or a forward begins otherwise.
_SUBJECTS = re.compile(
    r"""(?:\*+\s*|[\[【(（]\s*)?(?:
        (?:undelivered|undeliverable|unzustellbar|returned|undelivrable|non\s+remis|no\s+entregado
          |non\s+recapitabile)\b
      | un(?:able\ to\ deliver|delivered\ mail)
      | (?:mail|e-?mail|message)?\s*deliver\w*\ (?:fail\w*|problem|error|status|report|notification|has\ failed)
      | (?:mail|e-?mail|message)\s+(?:system\ error|not\ delivered|undeliverable|could\ not\ be\ delivered|returned)
      | failure\ (?:notice|delivery)|failed\ (?:delivery|mail|e-?mail|message)|delivery\ incomplete
      | non[- ]?delivery|nondeliverable|could\ not\ (?:send|deliver)
      | \[?bounced?\ (?:mail|e-?mail|message)|mail\ bounced?|rejected\ mail|user\ unknown
      | (?:message|mail)\ (?:status|delivery)\ -\ (?:undeliverable|failed)
      | mail\ failure|message\ you\ sent\ blocked|permanent\ delivery\ failure|delivery\ (?:notice|final\ failure)
      | zustellung\ fehlgeschlagen|nicht\ zustellbar|unzustellbare?|fehler\ bei\ der\ zustellung|mail\ konnte\ nicht
      | (?:échec|echec)\ (?:de|d')|non\ distribu|message\ non\ (?:remis|distribu)|notification\ d'(?:échec|état)
      | (?:error|fallo)\ (?:de|en\ la)\ entrega|no\ se\ (?:puede|pudo|ha\ podido)\ entregar|correo\ (?:no\ entregado
          |devuelto)
      | (?:mancata|impossibile)\ (?:consegna|recapitare)|recapito\ non|messaggio\ non\ (?:consegnato|recapitato)
      | (?:não|nao)\ (?:é\ possível\ entregar|foi\ entregue)|falha\ (?:na|de)\ entrega|não\ entregue
      | onbestelbaar|недоставленное|не\ доставлен|niedostarczon
      | (?:系统|邮件|自动|【)?\s*退信|来自.{0,60}(?:退信|退回)|邮件(?:发送|投递|传送|递送)?(?:失败|被退回|无法)
          |退回的?邮件
      | 邮件(?:未能|无法|没有)(?:送达|投递|发送)|未(?:送达|送達|传递|能送达|能投递)|无法(?:传递|投递|送达)|(?:投递
          |发送|传递)失败
      | 郵件(?:傳送|傳遞|投遞|寄送)?(?:失敗|被退回)|無法(?:傳遞|投遞|遞送)|退信|傳送失敗|投遞失敗|系統退信
      | 配信(?:エラー|不能|失敗)|配達(?:不能|エラー)|メールを?(?:配信|送信|配達)できません|送信(?:エラー|できません)
          |エラーメール
      | 배달(?:\ ?되지|\ ?못|\ ?불가|\ ?실패)|전송\ ?(?:실패|불가)|메일\ ?(?:전송|발송|배달)\ ?(?:실패|불가)|반송
          |발송\ ?실패
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_LATE_SUBJECTS = re.compile(
    r"""(?:
        .{0,60}\bdelay(?:ed)?\b|warning:\ (?:could\ not|message|e?-?mail|delivery)|.{0,40}still\ being\ retried
          |.{0,40}could\ not\ send\ message\ for\ past
      | .{0,60}verzögert|.{0,60}(?:retard|retrasad)|.{0,40}(?:延迟|延遲|遅延|지연)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_LATE_PROSE = re.compile(
    r"""(?:
        this\ is\ a\ warning\ message\ only|you\ do\ not\ need\ to\ resend|(?:has\ been|is)\ delayed\b
      | has\ not\ (?:yet\ )?been\ delivered\ to\ (?:one|all)|will\ (?:continue|keep)\ (?:to\ try|trying
          |to\ be\ retried)
      | will\ be\ retried\ for|delivery\ attempts\ will\ continue|暂时(?:未能|无法)(?:送达|投递)|将继续(?:尝试|重试
          |投递)|系统(?:会|将)继续
    )""",
    re.VERBOSE | re.IGNORECASE,
)

# Senders of reports: the name of the mailbox, or the name shown.
_DAEMON_BOX = re.compile(
    r"(?:mail(?:er)?[-_.]?daemon|mdaemon|postmaster|mail-?deliver\w*|(?:mail[-_.]?)?bounces?"
    r"|microsoftexchange[0-9a-f]{8,}"
    r"|mailadmin|mail[-_]?system|delivery-?notification|[^@\s]{0,40}-daemon|mmdf|uucp|autobounce"
    r"|undeliverable)",
    re.IGNORECASE,
)
_DAEMON_NAME = re.compile(
    r"(?:mail(?:er)?[ -]?daemon|mail(?: message)? deliver(?:y|ies|ed)? (?:sub)?system|mail administrator|postmaster"
    r"|mail system|internet mail (?:delivery|service)|delivery (?:sub)?system|smtp mailer|e-?mail delivery"
    r"|system administrator"
    r"|系统退信|退信|邮件系统|系统管理员|系統管理員)",
    re.IGNORECASE,
)

# The prose of reports.
_PROSE = re.compile(
    r"""(?:
        (?:could|can)\s?(?:not|n't)\ be\ (?:delivered|sent|reached)|cannot\ be\ delivered|was\ not\ delivered
          |wasn't\ delivered
      | (?:was|were)\ undeliverable|not\ been\ delivered|not\ delivered\ to|undeliverable\ (?:mail|message|to)
          |is\ undeliverable
      | (?:delivery|message)\ (?:to|of)\ .{0,80}\ (?:has\ )?failed|failed\ permanently|delivery\ (?:has\ )?failed
          |delivery\ failure
      | permanent\ (?:fatal\ )?(?:error|failure)|unable\ to\ (?:deliver|relay|send)|wasn't\ able\ to\ deliver
          |not\ able\ to\ deliver
      | couldn't\ (?:be\ )?deliver|did\ not\ reach\ the\ following|returned\ to\ sender|returned\ (?:mail|message)
      | (?:address(?:es)?|recipients?|users?)\ (?:had|failed|unknown|not\ found)|address(?:ee)?\ (?:unknown|not\ found)
      | the\ following\ (?:address|recipient|user|destination|error)|unknown\ (?:user|recipient|address|mailbox|local)
      | (?:user|mailbox|account|recipient)\ (?:is\ )?(?:unknown|unavailable|not\ found|full|disabled|over\ quota
          |doesn't)
      | no\ such\ (?:user|person|mailbox|recipient|address)|does\ ?n[o']t\ (?:exist|have\ an\ account|like\ recipient)
      | over\ (?:its\ |their\ |disk\ )?quota|mailbox\ (?:is\ )?full|host\ (?:unknown|not\ found)|\b5\d\d[- ]5\.\d\.\d
          |^[45]\d\d[ -]
      | konnte\ nicht\ zugestellt|nicht\ zustellbar|unzustellbar|n'a\ pas\ pu\ (?:être|etre)|n'a\ pas\ été\ (?:remis
          |distribu)
      | no\ (?:se\ )?pudo\ (?:ser\ )?entreg|no\ se\ ha\ podido\ entreg|non\ è\ stato\ (?:possibile|recapitato
          |consegnato)
      | não\ (?:pôde|foi)\ (?:ser\ )?entreg
      | 退信|退回|无法(?:投递|送达|发送|传递|到达)|未(?:能|被)?(?:送达|投递|传递|送到)|(?:投递|发送|传递|递送)(?:失败
          |不成功)|不能送达|没有送达
      | 拒收|被.{0,20}拒绝|(?:用户|收件人|帐号|账号|地址|邮箱).{0,12}不存在|邮箱(?:空间)?已?满|空间不足
          |找不到.{0,12}(?:域名|收件人|地址|用户)
      | 無法(?:傳遞|投遞|送達|寄送)|(?:傳送|投遞|寄送)失敗|配信(?:でき|エラー|され)|送信できません|届きません
          |届けられません|存在しません
      | 배달(?:\ ?되지|\ ?하지|\ ?못)|전송하지\ 못|전송되지|존재하지\ 않
    )""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)

_PERSON = re.compile(r"[?？]|\b(?:my|hi|hello|dear|help)\b|请|你好|您好|各位|我们?(?!的系统)", re.IGNORECASE)

# Where the copy of the returned message begins: what is written there is not the report.
_COPY = re.compile(
    r"""^[ \t>*#=_-]{0,80}(?:
        (?:below\ this\ line|this)\ is\ a\ copy\ of|(?:a\ )?copy\ of\ (?:the|your)\ (?:original\ )?message
          |begin(?:ning)?\ of\ message\ text
      | (?:start\ of\ |possibly\ truncated\ )?(?:the\ )?(?:original|returned|unsent|undelivered|rejected)\ (?:message
          |mail)\b(?!.{0,40}(?:was\ (?:sent|received|not)|follows\ above))
      | (?:message|mail)\ (?:header|text|content|body)s?\ follows?|your\ (?:original\ )?(?:message|mail)\ (?:is
          |follows|reads|header)
      | original\ (?:message|mail)\ (?:header|details)|returned\ message\ (?:header|text)s?|unsent\ message\ (?:below
          |follows)
      | -{2,}\ (?:forwarded|message|original)\b|(?:the\ )?(?:header|text|body)s?\ of\ the\ (?:original\ )?message
      | (?:原邮件|原始邮件|原文|原信件|邮件原文|原郵件|原始郵件|元のメッセージ|원본\ 메시지)(?:内容|标题
          |信头)?\s*[:：]?\s*[-=]*\s*$
    )""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_RECEIVED = re.compile(
    r"^(?:Received: (?:from|by|\()|Return-Path:[ \t]*<|MIME-Version: 1)", re.IGNORECASE | re.MULTILINE
)

# ASCII and accented letters: Chinese prose has no blank between an address and the words around it.
_ADDRESS = re.compile(
    r"""(?<![a-z0-9!#$%&+/?^_`{|}~.@\u00a1-\u2fff-])
        ([a-z0-9!#$%&'*+/=?^_`{|}~.\u00a1-\u02ff-]{1,64}@[a-z0-9\u00a1-\u02ff](?:[a-z0-9.\u00a1-\u02ff_-]{0,250}[a-z0-9\u00a1-\u02ff])?)""",
    re.VERBOSE | re.IGNORECASE,
)
_ALONE = re.compile(
    r"[\s<>()\[\]\"',;:：.*•·-]*+(?:mailto:|smtp:|rfc822;|to:|rcpt to:|recipient:|user:)?[\s<>\[\]\"']*$", re.IGNORECASE
)
_AFTER_ALONE = re.compile(
    r"[\s<>()\[\]\"',;:：.*-]*(?:\(expanded from.{0,200}|\(generated from.{0,200}|\(ultimately.{0,200}"
    r"|\(reason.{0,200})?$",
    re.IGNORECASE,
)
_OPENS = re.compile(r"[ \t]*(?:[*•·-]+ )?[<\[\"']*(?:mailto:)?$")  # `<a@b.c>: host … said: 550 …`
_LABELS = re.compile(
    r"""(?:
        (?:final-|original-|failed\ |intended\ )?recipients?|addressee|address|user|mailbox|account|to|rcpt\ to
          |delivered\ to
      | deliver(?:y|ed)?\ to|failed\ to|(?:sent|send|deliver|delivered)\ to|the\ following\ \w+|not\ delivered\ to
          |because|reach|an?\ ?die|à|a
      | 收件人|收信人|收件者|接收人|收件地址|收件人邮箱|收件邮箱|对方邮箱|目标地址|发送到|发送至|发往|投递到|投递至
          |送达|发给|到|至|宛先|受信者|받는\ ?사람|수신자
    )[^\n@]{0,80}$""",
    re.VERBOSE | re.IGNORECASE,
)
_NOT_RECIPIENTS = re.compile(
    r"(?:postmaster|mailer-daemon|helpdesk|support|abuse|admin(?:istrator)?|service|kefu|no-?reply)@", re.IGNORECASE
)
_NOT_RECIPIENT_LINES = re.compile(
    r"""^[ \t>*-]{0,20}(?:from|sender|reply-to|return-path|message-id|reporting-mta|return\ path|发件人|寄件人|寄件者
          |发信人|差出人
          |보낸\ ?사람|remote-mta|received)\s*[:：]
      | contact|联系|咨询|致电|for\ (?:help|assistance)|please\ (?:visit|see|send)|mail\ from\s*:|originator
      | 如有(?:疑问|问题)""",
    re.VERBOSE | re.IGNORECASE,
)

_ENHANCED = re.compile(r"(?<![\d.])([45])\.(\d{1,3})\.(\d{1,3})(?![\d.]*\d)")
_REPLY_CODE = re.compile(r"(?<![\d.:-])([45])[0-5]\d(?=[ \-:)\],，。：]|$)(?![-\d]*\.\d)")
_EXPIRED = "4.1"
_MEANINGS: Sequence[tuple[re.Pattern[str], str]] = tuple(
    (re.compile(pattern, re.IGNORECASE), status)
    for pattern, status in (
        (
            r"mailbox (?:is )?full|quota|over size|out of (?:disk )?(?:space|storage)|storage|(?:邮箱|信箱|空间"
            r"|容量).{0,8}(?:满|滿|不足|超)"
            r"|insufficient space|容量超過|용량|boîte pleine|postfach .{0,20}voll",
            "2.2",
        ),
        (
            r"host (?:unknown|not found)|domain (?:not found|does ?n[o']t exist|isn't)|unknown (?:host|domain)"
            r"|no such (?:domain|host)"
            r"|name service error|couldn't find any host|unrouteable (?:mail )?domain|nxdomain|域名.{0,12}(?:不存在"
            r"|错误|无法|找不到|解析)"
            r"|找不到.{0,8}域名|dns error|name or service not known|invalid domain|bad destination system",
            "1.2",
        ),
        (
            r"user unknown|(?:address(?:es)?|recipients?|users?) (?:were|was) unknown|unknown (?:user|recipient"
            r"|mailbox|local|address)|no such (?:user|person|mailbox"
            r"|recipient|address|account|local)"
            r"|does ?n[o']t exist|(?:user|recipient|mailbox|account|address"
            r"|addressee)(?: address)? (?:is )?(?:unknown|not found|invalid|rejected|unavailable)"
            r"|doesn't have an? .{0,40}account|invalid (?:recipient|mailbox|address|user)|not (?:listed|a valid"
            r"|our customer)|no mailbox here"
            r"|(?:couldn't|could not|wasn't|can't) be found|recipient ?not ?found|unrouteable address|not found in"
            r"|不存在|没有找到|找不到.{0,8}(?:收件人|地址|用户)|無效的?收件|无效的?(?:收件|地址|用户)|査無|查无"
            r"|存在しません|存在しない|존재하지"
            r"|n'existe pas|unbekannt|no existe|non esiste|não existe",
            "1.1",
        ),
        (
            r"(?:account|mailbox|user) (?:has been |is |was )?(?:disabled|inactive|suspended|locked|deactivated"
            r"|expired|blocked)"
            r"|(?:禁用|停用|冻结|凍結|注销|注銷|锁定|未激活|已关闭|被关闭)",
            "2.1",
        ),
        (
            r"too (?:large|big)|size (?:limit|exceeds)|exceeds? .{0,30}(?:size|limit)|maximum (?:message )?size"
            r"|邮件(?:大小|体积|太大|过大)"
            r"|超过.{0,12}(?:大小|限制)|附件(?:过大|太大)",
            "3.4",
        ),
        (
            r"spam|blacklist|block(?:ed|list)|denied|policy|reputation|rejected (?:by|due|for|your)"
            r"|not (?:permitted|authorized|allowed)|dmarc|\bspf\b"
            r"|virus|relay|垃圾|黑名单|黑名單|拒收|拒绝|拒絕|反垃圾|禁止|频率|病毒|敏感",
            "7.1",
        ),
        (
            r"timed? ?out|connection (?:refused|reset|lost)|could not connect|unreachable|retry time|too long"
            r"|expired|unable to connect"
            r"|超时|逾時|无法连接|连接失败|多次(?:尝试|投递)|过期",
            _EXPIRED,
        ),
    )
)
_SENTENCE = re.compile(r"reason|because|diagnostic|\bsaid\b|原因|理由|說明|说明|사유|エラー", re.IGNORECASE)
_MESSAGE_ID = re.compile(r"^Message-ID:[ \t]*(?:\r?\n[ \t]+)?<?([^\s<>]{3,500})>?", re.IGNORECASE | re.MULTILINE)


def is_daemon(sender: str) -> bool:
    """Whether that From (decoded) is the one of a mail system."""
    name, bracket, rest = sender.rpartition("<")
    address = (rest if bracket else sender).strip(" <>\"'\t")
    if _DAEMON_BOX.fullmatch(address.partition("@")[0]):
        return True
    return bool(_DAEMON_NAME.match(name.strip(" \"'\t")))


def subject_of_report(subject: str) -> bool:
    return bool(_SUBJECTS.match(subject) or _LATE_SUBJECTS.match(subject))


def prose_of_report(text: str) -> bool:
    """Whether the text, before the copy of the returned message, says that something was not delivered."""
    prose = _prose(text)
    return bool(_PROSE.search(prose) or _LATE_PROSE.search(prose))


def begins_as_report(text: str) -> bool:
    """Whether its first paragraph says so already: a person who quotes a report says something first, or asks."""
    first = text.lstrip()[:300].partition("\n\n")[0]
    return bool(_PROSE.search(first)) and not _PERSON.search(first)


def read(
    subject: str, text: str, leaves: Sequence[Leaf], failed: Sequence[str] = (), own: Sequence[str] = ()
) -> Report:
    """The report in a mail that is known to be one.

    `failed`: recipients that the header names (X-Failed-Recipients); `own`: addresses the report itself is from and to.
    """
    blocks = [block for leaf in leaves if leaf.content_type in STATUS_TYPES for block in _blocks(leaf.body)]
    listed = [
        block for block in blocks if "final-recipient" in block or "original-recipient" in block or "action" in block
    ]
    if listed and not any(map(_gave_up, listed)):
        return Report(False)
    if not listed and not failed and _is_late(subject, text):
        return Report(False)
    reported = _from_blocks([block for block in listed if _gave_up(block)])
    told = _from_prose(text, (*own, *reported.recipients) if reported.recipients else own)
    return Report(
        True,
        reported.recipients or _unique(failed) or told.recipients,
        _better(reported.status, reported.diagnostic, told.status),
        reported.diagnostic or told.diagnostic,
        _returned_id(text, leaves),
    )


# The machine-readable part


def _blocks(body: bytes) -> Iterator[dict[str, str]]:
    """The groups of fields in a delivery-status; names in lower case, values unfolded (RFC 3464, 2.1)."""
    block: dict[str, str] = {}
    last = ""
    for line in _decoded(body[:_MAX_STATUS_BYTES]).splitlines():
        if not line.strip():
            if block:
                yield block
            block, last = {}, ""
        elif line[0] in " \t" and last:
            if len(block[last]) < _MAX_DIAGNOSTIC_CHARS:
                block[last] += " " + line.strip()[:_MAX_DIAGNOSTIC_CHARS]
        else:
            name, colon, value = line.partition(":")
            last = name.strip().lower() if colon else ""
            if last and last not in block:
                block[last] = value.strip()
            elif last:
                last = ""  # a field twice: the first one counts
    if block:
        yield block


def _gave_up(block: dict[str, str]) -> bool:
    action = block.get("action", "").lower()
    if action:
        return action.startswith("fail")  # some add a comment
    return block.get("status", "5").startswith("5")


def _from_blocks(blocks: Sequence[dict[str, str]]) -> Report:
    """Original-Recipient is what the sender had written; Final-Recipient may be a mailbox nobody knows."""
    recipients = [
        _typed(block.get("original-recipient", "")) or _typed(block.get("final-recipient", "")) for block in blocks
    ]
    statuses = [match[0] for block in blocks if (match := _ENHANCED.search(block.get("status", "")))]
    diagnostics = [block["diagnostic-code"] for block in blocks if block.get("diagnostic-code")]
    return Report(
        True,
        _unique(filter(None, recipients)),
        statuses[0] if statuses else "",
        _brief(re.sub(r"^(?:smtp|x-[\w-]{1,40})\s*;\s*", "", diagnostics[0], flags=re.IGNORECASE))
        if diagnostics
        else "",
    )


def _typed(value: str) -> str:
    """The address in `rfc822; a@example.com`; some leave the type out."""
    address = value.partition(";")[2] if ";" in value else value
    match = _ADDRESS.search(address) or re.search(r"([^\s<>\"]{1,200}@[^\s<>\"]{1,250})", address)
    return match[1] if match else ""


# The prose


def _is_late(subject: str, text: str) -> bool:
    if _LATE_PROSE.search(_prose(text)):
        return True
    return bool(_LATE_SUBJECTS.match(subject)) and not subject.lower().startswith("warning: message")


def _prose(text: str) -> str:
    text = text[:MAX_PROSE_CHARS]
    ends = [match.start() for pattern in (_COPY, _RECEIVED) for match in [pattern.search(text)] if match]
    cut = min(ends, default=len(text))
    return text[:cut] if text[:cut].strip() else text


def _from_prose(text: str, known: Sequence[str]) -> Report:
    found = _recipients(_prose(text).splitlines(), {address.lower() for address in known})
    spoken = [line for one in found for line in one.lines] or _prose(text).splitlines()
    lines = [line for line in map(str.strip, spoken) if line][:_MAX_LINES]
    reasons = [line for line in lines if _REPLY_CODE.search(line) or _ENHANCED.search(line) or _meaning(line)]
    reasons = reasons or [line for line in lines if _SENTENCE.search(line)]
    diagnostic = _brief(" ".join(reasons[:4]))
    status = _status(diagnostic) or _status(_prose(text))
    return Report(True, _unique(one.address for one in found), status, diagnostic)


def _recipients(lines: Sequence[str], known: set[str]) -> list[_Found]:
    """The addresses that the report is about: on lines of their own, after a label, or before a colon.

    Where none stands like that, all that are not the report's own.
    """
    sure: list[_Found] = []
    perhaps: list[_Found] = []
    current: _Found | None = None
    for line in lines:
        line = line[:_MAX_LINE_CHARS]
        match = _ADDRESS.search(line) if "@" in line else None
        if match and not _NOT_RECIPIENT_LINES.search(line) and match[1].lower() not in known:
            current = _Found(match[1], [line])
            named = _names_recipient(line, match)
            if len(sure) + len(perhaps) < _MAX_RECIPIENTS:
                (sure if named else perhaps).append(current)
        elif current and len(current.lines) < 12:
            current.lines.append(line)
    return sure or [one for one in perhaps if not _NOT_RECIPIENTS.match(one.address)]


def _names_recipient(line: str, match: re.Match[str]) -> bool:
    before, after = line[: match.start(1)], line[match.end(1) :]
    if _ALONE.match(before) and _AFTER_ALONE.match(after):
        return True
    if _OPENS.match(before) and re.match(r"[>\"'\]]*[ \t]*(?:\([^)]{0,200}\)[ \t]*)?(?:[:：,]|\.\.\.|$)", after):
        return True
    return bool(_LABELS.search(before[-200:])) or bool(re.match(r"[>\"' ]*(?:\.\.\. |: )", after))


def _status(text: str) -> str:
    """`5.1.1` where the text has it; else by its SMTP reply code and what it says (RFC 3463); else ""."""
    if match := _ENHANCED.search(text):
        return match[0]
    code = _REPLY_CODE.search(text)
    if detail := _meaning(text):
        return f"{code[1] if code else '4' if detail == _EXPIRED else '5'}.{detail}"
    return f"{code[1]}.0.0" if code else ""


def _meaning(text: str) -> str:
    return next((detail for pattern, detail in _MEANINGS if pattern.search(text)), "")


def _better(reported: str, diagnostic: str, told: str) -> str:
    """A status of x.0.0 says nothing: what the other server answered may say more."""
    if reported and not reported.endswith(".0.0"):
        return reported
    in_diagnostic = _status(diagnostic)
    if in_diagnostic and not in_diagnostic.endswith(".0.0"):
        return in_diagnostic
    return reported or in_diagnostic or told


def _returned_id(text: str, leaves: Sequence[Leaf]) -> str:
    """The Message-ID of the returned message, from its part or from its copy in the text."""
    for leaf in leaves:
        if leaf.content_type in RETURNED_TYPES and (
            match := _MESSAGE_ID.search(_decoded(leaf.body[:_MAX_RETURNED_BYTES]))
        ):
            return match[1]
    copy = text[len(_prose(text)) : MAX_PROSE_CHARS]
    match = _MESSAGE_ID.search(copy)
    return match[1] if match else ""


def _unique(addresses: "Iterator[str] | Sequence[str] | filter[str]") -> tuple[str, ...]:
    return tuple({address.lower(): address for address in addresses}.values())[:_MAX_RECIPIENTS]


def _brief(text: str) -> str:
    return one_line(" ".join(text[: 4 * _MAX_DIAGNOSTIC_CHARS].split()))[:_MAX_DIAGNOSTIC_CHARS]


def _decoded(data: bytes) -> str:
    """Reports are ASCII; what else is in them is UTF-8, or what Chinese systems write."""
    for charset in ("utf-8", "gb18030"):
        try:
            return data.decode(charset)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")
