"""Whether a person wrote a mail, or a machine: replies, delivery reports, lists, notices (RFC 3834, 3464, 2369, 2919).

The mail is flagged, never dropped. A person's mail must not be flagged; a machine's that is missed costs less. So what
only a machine writes (a header, a report part) decides alone, and words decide only together with something else: the
subject's form with the first lines, or a header that machines like. What is quoted or forwarded is a person's.

`auto_reply`  an out-of-office note, an acknowledgement, ours included
`bounce`      a delivery was given up; `fields` has the recipients, the status, what the other server said, which mail
`system`      a delayed or successful delivery, a read receipt, an abuse report, a job's or a monitor's notice
`list`        a mailing list's (List-Id, List-Post, Precedence: list), or bulk mail: Precedence: bulk or junk, or
              List-Unsubscribe with another sign of a mass mailing. List-Unsubscribe alone decides nothing: tools that
              send one person's letter to one other person set it too.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.mail import bounce
from gateway.mail.message import Headers, Part
from gateway.text import without_controls

OWN_ACKNOWLEDGEMENT = "X-Huiru-Acknowledgement"

_MAX_PARTS = 1000
_OPENING_CHARS = 400
_MAX_SUBJECT_CHARS = 300

_REPORTS = bounce.STATUS_TYPES | {"message/feedback-report", "message/disposition-notification"}

# Headers that only an auto-responder sets, unless their value denies it.
_REPLY_HEADERS = (
    OWN_ACKNOWLEDGEMENT,
    "X-Autoreply",
    "X-Auto-Reply",
    "X-Autorespond",
    "X-Autoresponder",
    "X-Auto-Responder",
    "X-Autoreply-From",
    "X-Mail-Autoreply",
    "X-Auto-Reply-From",
    "X-Vacation",
    "X-QQ-Autoreply",
    "X-NetEase-Autoreply",
    "X-Away-Message",
    "X-OOF",
)
_REPLY_VALUES = (("Delivered-To", b"autoresponder"), ("X-Apple-Action", b"vacation"))
_DENIED = frozenset({"", "no", "false", "0", "none", "off"})
_REPLY_PRECEDENCE = frozenset({"auto_reply", "auto-reply", "autoreply"})
_BULK_PRECEDENCE = frozenset({"list", "bulk", "junk"})
_LIST_HEADERS = ("List-Id", "List-Post", "Mailing-List", "X-Mailing-List", "X-BeenThere", "X-Mailman-Version")
_MASS_HEADERS = (
    "List-Unsubscribe-Post",
    "Feedback-ID",
    "X-CSA-Complaints",
    "X-Campaign",
    "X-Campaign-ID",
    "X-CampaignId",
    "X-Mailer-Campaign",
    "X-Mailgun-Tag",
    "X-MC-User",
    "X-SG-EID",
    "X-SES-Configuration-Set",
)

_REPLY_OR_FORWARD = re.compile(
    r"[\s\[(【]*(?:re|fwd?|aw|wg|sv|vs|tr|rv|ynt|odp|回复|回覆|答复|答覆|转发|轉寄|转寄|轉發|返信|転送|회신|전달)(?:\[\d+\])?\s?[:：]",
    re.IGNORECASE,
)
# Subjects that an auto-responder makes: the words, then a colon and the subject it answers, or nothing.
_REPLY_WORDS = r"""
    automatic\ (?:reply|response|e?-?mail\ response)|auto(?:mated|matic)?[- ]?(?:reply|response|responder|answer)
  | out\ of\ (?:the\ )?office(?:\ (?:auto\w*|automatic\ |message)?-?\ ?(?:reply|response|message|notification|alert))?
  | (?:i\ am|i'm|currently|away)?\ ?(?:out\ of\ (?:the\ )?office|on\ (?:annual\ |sick\ |parental\ |maternity\ )?leave
          |on\ vacation|on\ holiday)
  | vacation\ (?:reply|notice|message|response|auto-?reply)|away\ (?:message|notice)|away\ from\ (?:my\
          |the\ )?(?:office|mail|desk)|ooo|oof
  | automatische\ (?:antwort|rückmeldung|reaktion)|abwesenheits?(?:notiz|meldung|nachricht|benachrichtigung
          |assistent)?|autom\.?\ antwort|nicht\ im\ (?:büro|haus)
  | réponse\ (?:automatique|d'absence)|message\ (?:automatique|d'absence)|absence\ du\ bureau|absent\ du\ bureau
          |accusé\ de\ réception\ automatique
  | respuesta\ automática|fuera\ de(?:\ la)?\ oficina|contestación\ automática
  | risposta\ automatica|fuori\ (?:sede|ufficio)|risponditore\ automatico
  | resposta\ automática|fora\ do\ escritório|ausência(?:\ temporária)?|automatisch\ antwoord
          |afwezig(?:heid)?(?:sbericht)?
  | autosvar|auto-?svar|automatiskt?\ svar|frånvaro(?:meddelande)?|ikke\ til\ stede|automaattinen\ vastaus
          |poissa\ toimistosta
  | automatyczna\ odpowiedź|autoodpowiedź|nieobecność|automatická\ odpov[eě]ď|automatikus\ válasz|răspuns\ automat
          |otomatik\ (?:yanıt|cevap)
  | автоматический\ ответ|автоответ|автоматична\ відповідь|αυτόματη\ απάντηση
  | (?:系统|系統|邮件|郵件|假期|休假|外出|离线)?\ ?自动(?:回复|答复|应答|回覆|回信)(?:邮件)?|(?:系統|郵件
          |休假)?\ ?自動(?:回覆|回復|答覆|應答|回信)(?:郵件)?
  | (?:我|本人)?(?:正在|目前|现在|已)?(?:外出|休假|出差|度假|不在办公室|不在辦公室)(?:中|通知|提醒|回复|自动回复)?
          |休假通知|外出通知
  | (?:您|你)的(?:邮件|来信|郵件|來信)(?:我)?(?:们)?(?:已经|已經|已)?(?:收到|收悉|送达)(?:了)?|(?:来信|来函
          |邮件)已(?:收到|收悉)|已收到(?:您|你)的(?:邮件|来信|郵件)
  | (?:メール)?自動(?:返信|応答|回答)(?:メール)?|不在(?:の)?(?:通知|連絡|お知らせ|のため)?|休暇(?:中|の(?:お知らせ
          |連絡))?|【?自動配信】?
  | 자동\ ?(?:회신|응답|답장|답변)(?:\ ?메일)?|부재\ ?중(?:\ ?알림)?|휴가\ ?중"""
_REPLY_SUBJECT = re.compile(
    rf"""\s*(?:
        [\[(【（<*]+\s*(?:{_REPLY_WORDS})\s*[\])】）>*]+.*
      | auto:\s*(?:re|aw|sv|回复|答复)\s?[:：].*
      | (?:{_REPLY_WORDS})\s*(?:[:：].*|[-–—]\ .*|\bre:.*|[!！.。]?)
    )""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)

# First sentences that call the mail itself automatic.
_SAYS_AUTOMATIC = re.compile(
    r"""(?:
        (?:please\ note:?\ )?(?:this|it)\ is\ an?\ (?:automat(?:ic|ed)|auto[- ]?(?:generated
          |matic)?)[ -]*(?:e-?mail\ |out[- ]of[- ]office\ )?(?:generated\ )?
            (?:reply|response|answer|message|e-?mail|acknowledge?ment|notification|notice)
      | this\ (?:e-?mail|message|reply)\ (?:is|was|has\ been)\ (?:sent\ |generated\
          |created\ )?(?:an\ )?automatic(?:ally)?
      | \**\s*(?:automatic|automated|auto)[- ](?:reply|response)\b\s*\**[.:!]?\s*$
      | (?:dies\ ist\ eine|diese\ (?:e-?mail|nachricht)\ (?:ist|wurde))\ (?:eine\ )?automatisch
      | (?:ceci\ est\ (?:un|une)|ce\ message\ est\ (?:un|une)?)\ ?(?:réponse|message)?\ ?(?:automatique
          |envoyé\ automatiquement|généré\ automatiquement)
      | (?:este\ es\ un(?:a)?|este\ mensaje\ es|esta\ es\ una)\ ?(?:mensaje|respuesta|correo)?\ ?automátic
      | (?:questo\ è\ un(?:a)?|questa\ è\ una)\ (?:messaggio|risposta|e-?mail)\ (?:generat\w\ )?automatic
      | (?:esta\ é\ uma|este\ é\ um(?:a)?)\ (?:resposta|mensagem|e-?mail)\ automátic|dit\ is\ een\ automatisch
          |это\ автоматическ
      | 这?(?:是|为)(?:来自)?.{0,20}自动(?:回复|答复|应答|发送|生成)|(?:本|此|该|這|这)(?:邮件|信|回复|信件|封邮件
          |封信|郵件|封郵件)(?:为|是|由|為).{0,16}(?:自动|自動)
      | (?:自动|自動)(?:回复|答复|回覆|应答|回復)(?:邮件)?[:：。.!！】\])]?\s*(?:请勿|請勿|$)|(?:系统|系統)(?:自动
          |自動)(?:回复|发送|发出|回覆|發送
          |生成).{0,12}(?:请勿|請勿|不要|无需|勿)
      | (?:この|本|当)メール(?:は|に).{0,40}自動|(?:自動返信|自動応答|自動配信)(?:です|メール|で)|(?:이|본)\ ?(?:메일
          |메시지)(?:은|는).{0,20}자동
    )""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
# What out-of-office notes and acknowledgements open with; people write it too.
_SOUNDS_AWAY = re.compile(
    r"""(?:
        out\ of\ (?:the\ )?office|away\ from\ (?:the\ |my\ )?(?:office|desk|e-?mail)|on\ (?:annual\ |sick\
          |maternity\ |paternity\ |parental\ |business\ )?(?:leave|vacation|holiday|travel)
      | (?:i\ will|i'll|i\ shall|will)\ (?:be\ )?(?:back|return|respond|reply|get\ back|answer)
          |limited\ access\ to\ (?:my\ )?e-?mail|no\ longer\ (?:with|work|employ|in\ use|monitored)
      | thank(?:s|\ you)\ for\ (?:your|contacting|reaching|getting|writing|the)|(?:we|i)\ (?:have\ )?received\ your
          |has\ been\ received|in\ urgent\ cases|(?:if|for)\ .{0,20}urgent
      | (?:nicht|außer|ausser)\ (?:im|in|am)\ (?:büro|hause?|arbeitsplatz)|im\ urlaub|abwesend|nicht\ erreichbar
          |vielen\ dank\ für\ ihre|ab\ dem\ \d|bis\ (?:zum|einschließlich)
      | absente?\b|en\ congés?|en\ vacances|de\ retour|merci\ (?:de|pour)\ votre|fuera\ de\ la\ oficina
          |de\ vacaciones|ausente|gracias\ por|regreso
      | in\ ferie|fuori\ (?:sede|ufficio)|assente|grazie\ per|sarò\ di\ ritorno|de\ férias|fora\ do\ escritório
          |obrigad[oa]\ p|retorno|regressarei
      | afwezig|met\ vakantie|niet\ aanwezig|på\ semester|åter|på\ ferie|tilbage|poissa|lomalla|na\ urlopie|nieobecn
          |dovolen|szabadság|concediu|izinde|в\ отпуске|отсутств
      | 休假|外出|出差|度假|年假|产假|病假|请假|休息|不在(?:办公室|公司|辦公室|岗)|已?离职|暂时(?:无法|不能)
          |無法(?:即時|及時|立即)|(?:无法|不能|未能)(?:及时|立即|马上|即时)
      | (?:已|已经|已經|我们)(?:收到|收悉)|(?:收到|收悉)(?:了)?(?:您|你)?的?(?:来信|邮件|郵件|來信)|(?:您
          |你)的(?:邮件|来信|郵件|來信).{0,8}(?:收到|收悉)|(?:会
          |将|將|會).{0,10}(?:尽快|盡快|第一时间|及时|小时内|工作日)
      | 不在(?:に|して|の|と|です)|休暇|外出中|受け付け|受信(?:いた|し)|お問い?合わ?せ(?:いただき|ありがとう|を)
          |부재중|휴가|자리를\ 비|접수|출장
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_QUOTED = re.compile(
    r"""^[ \t]*(?:
        >|\|\ |-{2,}\ ?(?:original|forwarded|原始|原邮件|转发|転送|original-)|_{10,}|={10,}\s*$
      | (?:from|von|de|da|发件人|寄件者|寄件人|差出人|보낸\ ?사람)\s*[:：]|on\ .{4,120}\ wrote:|am\ .{4,120}\ schrieb
          |le\ .{4,120}\ a\ écrit|在\ ?.{4,120}写道[:：]|.{0,80}(?:写道|寫道|のメール|님이\ 작성)[:：]\s*$
    )""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_QUESTION = re.compile(r"[?？]")
_CRON = re.compile(r"Cron <[^>]{1,200}@[^>]{1,200}> ")
_NO_REPLY = re.compile(r"\b(?:do[-_.]?)?not?[-_.]?reply\b", re.IGNORECASE)


Kind = Literal["auto_reply", "bounce", "list", "system"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`auto`: what made the mail, null for a person. `fields`: what a bounce says (`bounce_…`)."""

    auto: Kind | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def classify(mail: Part, text: str, mail_from: str | None = None) -> Verdict:
    """What wrote the mail. `text`: its whole text; `mail_from`: the transaction's return path, "" for the null one.

    Never raises; the time is linear in the mail's size.
    """
    text = without_controls(text[: bounce.MAX_PROSE_CHARS])
    leaves = list(_leaves(mail))
    headers, subject = mail.headers, mail.headers.text("Subject").strip()[:_MAX_SUBJECT_CHARS]
    null_path = mail_from == "" or headers.first("Return-Path") in {b"<>", b"< >"}
    report = _report(mail, leaves, subject, text, null_path)
    if report is not None:
        return report
    kind = _replies(headers, subject, text, null_path) or _is_notice(headers, subject) or _is_mass(headers)
    return Verdict(kind)


# Delivery reports


def _report(mail: Part, leaves: list[Part], subject: str, text: str, null_path: bool) -> Verdict | None:
    types = {leaf.content_type for leaf in leaves}
    formal = mail.content_type == "multipart/report" or bool(types & _REPORTS and _is_machine(mail.headers, null_path))
    if formal and types & (_REPORTS - bounce.STATUS_TYPES):
        return Verdict("system")  # a receipt, a complaint: whoever sent it, a machine wrote it
    if formal and types & bounce.STATUS_TYPES:
        return _read(mail, leaves, subject, text)
    if _is_prose_report(mail, subject, text, null_path):
        return _read(mail, leaves, subject, text)
    return None


def _is_machine(headers: Headers, null_path: bool) -> bool:
    return null_path or bounce.is_daemon(headers.text("From")) or _auto_submitted(headers) not in {"", "no"}


def _is_prose_report(mail: Part, subject: str, text: str, null_path: bool) -> bool:
    headers = mail.headers
    if headers.first("X-Failed-Recipients"):
        return True
    if _REPLY_OR_FORWARD.match(subject) or _auto_submitted(headers) == "auto-replied":
        return False
    sender, titled = headers.text("From"), bounce.subject_of_report(subject)
    known = bounce.is_daemon(sender)
    if null_path or mail.content_type == "multipart/report" or (known and "daemon" in sender.lower()):
        told = titled or (known and bounce.prose_of_report(text))
        return told and not _REPLY_SUBJECT.fullmatch(subject)
    # A person may be called postmaster, and anyone may write such a subject: then the words have to name who, and why.
    if not titled or (not known and (headers.first("References") or not bounce.begins_as_report(text))):
        return False
    report = bounce.read(subject, text, ())
    if known:
        return bounce.prose_of_report(text) and bool(not report.failed or report.recipients or report.status)
    return bool(report.recipients and report.status)


def _read(mail: Part, leaves: list[Part], subject: str, text: str) -> Verdict:
    headers = mail.headers
    failed = [address.strip(" <>") for address in headers.text("X-Failed-Recipients").split(",") if "@" in address]
    own = [found for name in ("From", "To", "Reply-To") for found in _addresses(headers.text(name))]
    report = bounce.read(subject, text, leaves, failed, own)
    return Verdict("bounce", report.fields()) if report.failed else Verdict("system")


def _addresses(value: str) -> list[str]:
    return [word.strip("<>\"',;()") for word in value[:10_000].replace(",", " ").split() if "@" in word]


# Auto-replies


def _replies(headers: Headers, subject: str, text: str, null_path: bool) -> Kind | None:
    if _auto_submitted(headers) == "auto-replied" or _precedence(headers) & _REPLY_PRECEDENCE:
        return "auto_reply"
    if any(_says_yes(headers, name) for name in _REPLY_HEADERS):
        return "auto_reply"
    if any((headers.first(name) or b"").strip().lower() == value for name, value in _REPLY_VALUES):
        return "auto_reply"
    return "auto_reply" if _reads_as_reply(headers, subject, text, null_path) else None


def _reads_as_reply(headers: Headers, subject: str, text: str, null_path: bool) -> bool:
    """Without a header that says it: two signs have to agree."""
    titled, hint = _REPLY_SUBJECT.fullmatch(subject) is not None, null_path or _is_hinted(headers)
    answers = bool(headers.first("In-Reply-To") or headers.first("References") or _REPLY_OR_FORWARD.match(subject))
    if not (titled or hint or answers):
        return False
    opening = _opening(text)
    if (titled and hint) or _says_automatic(opening):
        return True
    unattended = null_path or (answers and _is_unattended(headers))
    return (titled or unattended) and _SOUNDS_AWAY.search(opening) is not None


def _is_unattended(headers: Headers) -> bool:
    """What an answer has that no person sends, and that is no list's: vacation(1) sets Precedence alone."""
    if any(headers.first(name) for name in _LIST_HEADERS):
        return False
    return (
        _auto_submitted(headers) not in {"", "no"}
        or bool(_precedence(headers) & _BULK_PRECEDENCE)
        or _NO_REPLY.search(headers.text("From")) is not None
    )


def _opening(text: str) -> str:
    """What stands above the first quotation, its beginning."""
    text = text.lstrip()[: 4 * _OPENING_CHARS]
    quoted = _QUOTED.search(text)
    return text[: quoted.start() if quoted else len(text)][:_OPENING_CHARS]


def _says_automatic(opening: str) -> bool:
    """Whether one of the first lines is such a sentence, and not a question about it."""
    for line in opening.splitlines()[:6]:
        line = line.strip(" \t\u3000*-—=【[（(※★☆■□●◆<")
        match = _SAYS_AUTOMATIC.match(line)
        if match and not _QUESTION.search(line):
            return True
    return False


def _is_hinted(headers: Headers) -> bool:
    """Headers that machines like to set, and people's mail may have."""
    source = headers.text("X-MS-Exchange-Generated-Message-Source").lower()
    return (
        _auto_submitted(headers) not in {"", "no"}
        or bool(_precedence(headers) & _BULK_PRECEDENCE)
        or bool(headers.first("X-Auto-Response-Suppress"))
        or "rules agent" in source
        or bool(_NO_REPLY.search(headers.text("From")))
    )


# Notices and lists


def _is_notice(headers: Headers, subject: str) -> Kind | None:
    submitted = _auto_submitted(headers)
    if submitted.startswith("auto-") or _CRON.match(subject) or headers.first("X-Cron-Env"):
        return "system"
    return None


def _is_mass(headers: Headers) -> Kind | None:
    if any(headers.first(name) for name in _LIST_HEADERS) or _precedence(headers) & _BULK_PRECEDENCE:
        return "list"
    if headers.first("List-Unsubscribe") and any(headers.first(name) for name in _MASS_HEADERS):
        return "list"
    return None


# Headers


def _auto_submitted(headers: Headers) -> str:
    """The keyword of RFC 3834, 5.2, without parameters and comments."""
    return re.split(r"[;(\s]", headers.text("Auto-Submitted").strip().lower(), maxsplit=1)[0]


def _precedence(headers: Headers) -> set[str]:
    return {headers.text(name).strip().lower() for name in ("Precedence", "X-Precedence")}


def _says_yes(headers: Headers, name: str) -> bool:
    return headers.first(name) is not None and headers.text(name).strip().lower() not in _DENIED


def _leaves(mail: Part) -> Iterator[Part]:
    waiting, count = [mail], 0
    while waiting and count < _MAX_PARTS:
        part, count = waiting.pop(), count + 1
        if part.children:
            waiting.extend(reversed(part.children))
        else:
            yield part
