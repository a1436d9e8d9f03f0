r"""What mail programs write around a quoted message, as tables: one per family of markers.

Seen in the mails of Outlook (desktop, web, mobile), Gmail, Apple Mail, Thunderbird, Yahoo, Lotus Notes, Zoho, Proton,
QQ邮箱, 企业微信邮箱, 网易 (web and 邮箱大师), Foxmail, 阿里邮箱, 钉邮, Coremail, 飞书 and of phones. Every question is
asked of a line's `view`; a line that is longer than a marker gets is not looked at. So the time a question takes is
bounded, but for `view` itself, which is linear.
"""

import re

MAX_CHARS = 400  # a longer line is a customer's paragraph, no marker
_SEPARATOR_CHARS = 160
_ADDED_CHARS = 90

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_ENTITY_BLANK = re.compile("&nbsp;", re.IGNORECASE)  # QQ邮箱 leaves it in its text parts
_EMPHASIS = re.compile(r"\*+")  # what HTML's bold type becomes in some text parts


def view(line: str) -> str:
    """The line without what cannot be seen; "" for one that looks empty."""
    plain = _ENTITY_BLANK.sub(" ", _INVISIBLE.sub("", line)) if not line.isascii() or "&" in line else line
    return plain.replace("\xa0", " ").replace("\u3000", " ").strip()


def _phrases(table: str) -> frozenset[str]:
    return frozenset(" ".join(phrase.split()) for phrase in table.split(","))


_MARK = re.compile("[-_=*~#>:：|\t@行线線위—–―─━┈┄－＿＝～＊＋]|[+]{2}")
_MARK_WORD = re.compile("[ALRZalrz](?:bove|inie|eile|igne|inea|ínea|inha|iga|ijn|egel)|ABOVE")


def may_introduce(line: str) -> bool:
    """Whether it has a character or a word without which no line introduces a quote; quickly told of most lines.

    An attribution of several lines has them in its last one.
    """
    return _MARK.search(line) is not None or _MARK_WORD.search(line) is not None


# Rules, and rules with words in them

_RULE = re.compile(r"[-_=*~#+—–―─━┈┄－＿＝～＊＋]{2,}|—")


def is_rule(line: str) -> bool:
    """A line drawn with characters."""
    return _RULE.fullmatch(line) is not None


_ORIGINAL = _phrases("""
    original message, original appointment, original, replied message, reply message, original mail, 原始邮件,
    原始郵件, 原邮件, 原郵件, 邮件原件, 邮件原文, 原邮件信息, 原邮件内容, 原文, 原始信息, 回复的原邮件, 回复的邮件,
    回复邮件, 回覆的原郵件, 原始訊息, 原始消息, 引用邮件, 历史邮件, ursprüngliche nachricht, originalnachricht,
    original-nachricht, ursprünglicher termin, message d'origine, message d’origine, message original,
    message initial, mensaje original, mensagem original, messaggio originale, missatge original,
    oorspronkelijk bericht, origineel bericht, wiadomość oryginalna, oryginalna wiadomość, исходное сообщение,
    пересланное исходное сообщение, вихідне повідомлення, ursprungligt meddelande, originalmeddelande,
    oprindelig meddelelse, opprinnelig melding, original meddelelse, opprinnelig meddelelse, alkuperäinen viesti,
    původní zpráva, původní e-mail, pôvodná správa, eredeti üzenet, mesaj original, özgün ileti, orijinal mesaj,
    orjinal mesaj, orijinal ileti, αρχικό μήνυμα, 元のメッセージ, 元のメール, オリジナルメッセージ,
    オリジナル メッセージ, 返信元のメッセージ, 원본 메시지, 원본 메일, 원본메시지, 원본메일, 원래 메시지
""")
_FORWARD = _phrases("""
    forwarded message, forwarded mail, forward message, begin forwarded message, forwarded by, 转发邮件, 转发的邮件,
    转发邮件信息, 转发信息, 转发的原邮件, 已转发邮件, 已转发的邮件, 开始转发的邮件, 下面是被转发的邮件, 轉寄郵件,
    轉寄的郵件, 轉寄訊息, 已轉寄郵件, 開始轉寄郵件, 轉寄郵件開始, 被转发的邮件, 被转发邮件信息, 转发邮件开始,
    weitergeleitete nachricht, anfang der weitergeleiteten nachricht, anfang der weitergeleiteten e-mail,
    message transféré, début du message transféré, début du message réexpédié, message réexpédié, mensaje reenviado,
    inicio del mensaje reenviado, mensagem encaminhada, início da mensagem encaminhada, mensagem reencaminhada,
    messaggio inoltrato, inizio messaggio inoltrato, missatge reenviat, doorgestuurd bericht,
    begin doorgestuurd bericht, przekazana wiadomość, wiadomość przekazana dalej, początek przekazywanej wiadomości,
    treść przekazanej wiadomości, пересылаемое сообщение, пересланное сообщение, начало переадресованного сообщения,
    переслане повідомлення, vidarebefordrat meddelande, vidarebefordrat brev, videresendt meddelelse,
    videresendt melding, start på videresendt besked, videresendt besked, videresendt e-post, vidarebefordrat mejl,
    välitetty viesti, edelleenlähetetty viesti, přeposlaná zpráva, preposlaná správa, továbbított üzenet,
    iletilmiş mesaj, yönlendirilmiş ileti, iletilen ileti, iletilen mesaj, mesaj redirecționat, 転送メッセージ,
    転送されたメッセージ, 転送メール, 転送されたメール, 転送元メッセージ, 전달된 메시지, 전달된 메일, 전달메시지
""")
# Apple Mail draws no rule.
_FORWARD_BEGINS = re.compile(
    "begin |anfang |début |inicio |início |inizio |początek |начало |start |開始|开始|下面|轉寄"
)
_WORDED = re.compile(
    r"(?P<left>[-_=*~—–─━－>]*)\s*(?P<words>[^\W\d_][^-_=*~—–─━－]{1,60}?(?:-\w[^-_=*~]{1,40})?)\s*"
    r"(?P<right>[-_=*~—–─━－]*)\s*[:：]?"
)


def separator(line: str) -> str:
    """`original` or `forward` for a line such as "-----Original Message-----"; else ""."""
    match = _WORDED.fullmatch(line) if len(line) <= _SEPARATOR_CHARS else None
    if match is None:
        return ""
    words = " ".join(match["words"].lower().split())
    drawn = max(len(match["left"]), len(match["right"])) > 1
    if words in _FORWARD and (drawn or (line.endswith((":", "：")) and _FORWARD_BEGINS.match(words))):
        return "forward"
    return "original" if drawn and words in _ORIGINAL else ""


# Header fields, whose names programs translate; blanks in a name do not count

_FIELDS = {
    "from": """
        from von de da van od от від från fra lähettäjä odesílatel odosielateľ feladó kimden gönderen από la dari
        absender expéditeur mittente remitente remetente afzender nadawca отправитель avsändare afsender avsender
        发件人 寄件者 寄件人 發件人 发信人 發信人 发送人 发送者 差出人 送信者 送信元 보낸사람 보낸이 발신 발신자 từ
        จาก
    """,
    "to": """
        to an para à a al aan do кому до till til vastaanottaja komu címzett kime alıcı προς către kepada empfänger
        destinataire destinatario destinatário destinatari ontvanger adresat odbiorca получатель mottagare modtager
        mottaker 收件人 收件者 至 收信人 接收人 宛先 受信者 送信先 받는사람 받는이 수신 수신자 đến ถึง příjemce pour
    """,
    "cc": """
        cc bcc cci ccn kopie kopia kopio kopi copie copieà copia cópia dw udw копия скрытаякопия копія másolatotkap
        bilgi 抄送 抄送人 密送 副本 副本抄送 密件副本 参照 참조 숨은참조 másolat κοιν
    """,
    "date": """
        date sent sentat datum gesendet gesendetam envoyé envoyéle enviado enviadael enviadoel enviadaem enviadoem
        enviada inviato inviatoil data dataora fecha verzonden wysłano датa дата отправлено надіслано skickat
        skickad sendt sendtden lähetetty päivämäärä päiväys pvm odesláno odoslané dato gönderildi gönderilme tarih
        tarihi elküldve dátum trimis ημερομηνία 发送时间 发送日期 日期 时间 發送時間 發送日期 寄件日期 傳送時間
        寄件時間 傳送日期 時間 发件时间 发信时间 送信日時 日時 日付 送信日 送信時刻 보낸날짜 날짜 보낸시간 일시
        발신일 tanggal ngày วันที่ sendetidspunkt
    """,
    "subject": """
        subject betreff objet asunto oggetto assunto onderwerp temat тема ämne emne aihe předmět predmet konu tárgy
        subiect θέμα sujet assumpte perihal title 主题 主題 主旨 标题 標題 件名 題名 제목 chủđề หัวเรื่อง
    """,
}
_BESIDE = "reply-to importance 重要性 回复 回复给 答复 attachments 附件 답장받는사람"
_ROLES = {name: role for role, names in _FIELDS.items() for name in names.split()}
_ROLES |= dict.fromkeys(_BESIDE.split(), "cc")
_FIELD = re.compile(r"[|\s]*(?P<name>[^\W\d_][^:：|\t@<>]{0,24}?)\s*[:：|\t](?P<value>.*)")
_CLAUSE = re.compile(r"(?<!\w)(?P<name>[^\W\d_][\w\s]{0,8}?)\s*[:：]")


def field(line: str) -> tuple[str, str]:
    """What a header field says (`from`, `to`, `cc`, `date`, `subject`) and its value; ("", "") when it is none."""
    match = _FIELD.match(_EMPHASIS.sub("", line[: 2 * MAX_CHARS]))
    role = _role(match["name"]) if match else ""
    return (role, match["value"].strip("| \t")) if match and role else ("", "")


def fields_in_one(line: str) -> set[str]:
    """What all fields on one line say, as when a header block has lost its line ends."""
    if len(line) > 2 * MAX_CHARS:
        return set()
    names = (match["name"].rsplit(maxsplit=1)[-1] for match in _CLAUSE.finditer(line))
    return {role for name in names if (role := _role(name))}


def _role(name: str) -> str:
    return _ROLES.get("".join(name.lower().split()), "")


# "On … wrote:"

_VERB = re.compile(
    r"(?<!\w)(?:wrote|writes|schrieb|schreibt|geschrieben|écrit|escribió|ha scritto|scrive|escreveu|schreef|geschreven"
    r"|napisała?|napisał\(a\)|napsala?|napsal\(a\)|napísala?|napísal\(a\)|pisze|napisane|napisana"
    r"|написала?|написал\(а\)|пишет|пише|написав|skrev|kirjoitti|yazdı|ezt írta|írta|a scris|έγραψε|va escriure"
    r"|viết|menulis)(?!\w)"
    r"|写道|寫道|写到|寫到|のメール|書き(?:込み)?ました|のメッセージ|작성|님이 (?:쓴 글|씀)|쓰기",
    re.IGNORECASE,
)
_START = re.compile(
    r"[->\s]*(?:(?:on|am|le|el|il|em|no dia|op|den|w dniu|dnia|dne|at|um|på|wiadomość napisana|om)\s.*\d"
    r"|[在於于]\s*.{0,6}\d)",
    re.IGNORECASE,
)
_DATE = re.compile(r"(?:19|20)\d\d(?!\d)|(?<!\d)\d{1,2}[./-]\s?\d{1,2}[./-]\s?\d\d(?!\d)")
_TIME = re.compile(r"(?<!\d)\d{1,2}\s?(?:[:.：h點点时時]|시)\s?\d\d")
_ADDRESS = re.compile(r"[^\s@]@[^\s@]")
_NAMED_ADDRESS = re.compile(r"[^@,，:：]{0,60}<[^\s<>@]{1,64}@[^\s<>@]{1,190}>[,，、]?\s?(?:[于於在]|on|at)?")
_ENDS_IN_ADDRESS = re.compile(r"@[^\s<>@]{1,190}[>)\]]\s*[:：]$")
_DRAWN = re.compile(r"-{2,}\s*\w.*\w\s*-{2,}")
_RUN_ON = re.compile(
    r"@[^\s<>@]{1,190}[>)\]]\s*(?:wrote|schrieb|a écrit|escribió|ha scritto|escreveu|写道|寫道)\s*[:：]\s"
)


def ends_attribution(line: str) -> bool:
    """Whether the line could be the last one of an attribution."""
    return len(line) <= MAX_CHARS and (line.endswith((":", "：")) or _DRAWN.fullmatch(line) is not None)


def runs_on(line: str) -> bool:
    """Whether an attribution has the first words of the quote behind it, as Yahoo's mobile program writes it."""
    match = _RUN_ON.search(line) if len(line) <= MAX_CHARS and starts_attribution(line) else None
    return match is not None and _DATE.search(line[: match.start()]) is not None


def is_attribution(line: str, quote_follows: bool) -> bool:
    """Whether joined lines say who wrote what follows.

    Beside the verb it takes two of date, time and address; where quoted lines follow, the verb alone will do. Some
    translations have no verb; they need all three and the address last.
    """
    evidence = sum(1 for pattern in (_DATE, _TIME, _ADDRESS) if pattern.search(line))
    if _VERB.search(line):
        return quote_follows or evidence >= 2
    return evidence == 3 and _ENDS_IN_ADDRESS.search(line) is not None


def starts_attribution(line: str) -> bool:
    """Whether an attribution that has more lines begins here."""
    return _START.match(line) is not None


def is_named_address(line: str) -> bool:
    """A name and an address, which some programs put on a line before the date."""
    return _NAMED_ADDRESS.fullmatch(line) is not None


# "Please reply above this line"

REPLY_MARKER = "## 请在此行以上回复 / Please reply above this line ##"  # what our own mails carry
_REPLY_ABOVE = re.compile(
    r"(?:please\s+)?(?:type|write|enter|add|reply|respond)\b.{0,40}\babove this line"
    r"|[请請]?[在于於](?:此|这条?|這條?|本|该|該)?(?:行|线|線|分割线|虚线|横线)[之以]?(?:上[方面]?|前)"
    r"(?:回[复覆信]|[輸输]入|填写|书写)"
    r"|[请請]?回[复覆][在于]?此[行线線][之以]?上方?|この[行線]より上に.{0,12}(?:返信|記入|入力)"
    r"|이 [줄선] 위에.{0,12}(?:답장|회신|작성)"
    r"|bitte (?:antworten|schreiben) sie (?:ober|über)\w* .{0,20}(?:linie|zeile)"
    r"|(?:veuillez )?(?:répondre|répondez|écrire|écrivez) .{0,20}au[- ]dessus de cette ligne"
    r"|(?:por favor,? )?(?:escriba|responda|escreva) .{0,30}(?:encima|arriba|acima) (?:de esta|desta) lin[eh]a"
    r"|(?:por favor,? )?(?:escriba|responda) .{0,30}(?:encima|arriba) de esta línea"
    r"|(?:si prega di )?(?:rispondere|scrivere) .{0,20}sopra (?:a )?questa (?:linea|riga)"
    r"|(?:typ|schrijf|antwoord) .{0,30}boven deze (?:lijn|regel)",
    re.IGNORECASE,
)


def is_reply_above(line: str) -> bool:
    """The mark under which a help desk puts the history; a sentence that speaks of it is none."""
    if len(line) > _SEPARATOR_CHARS:
        return False
    bare = line.strip("#-_=*~<>[]()【】—–─ .。:：!！")
    match = _REPLY_ABOVE.match(bare)
    beyond = len(bare) - match.end() if match else MAX_CHARS
    return beyond <= 3 or (beyond <= 60 and not line[0].isalnum())


# What programs add under a message: "…" is a device or a program, and has to sound like one

_ADDED_FORMS = """
    sent from … | sent via … | sent using … | sent by … | sent with … | get outlook for … | download outlook for …
    yahoo mail: search, organize, conquer | virus-free…
    发自… | 發自… | 发送自… | 發送自… | 来自… | 來自… | 寄自… | 传送自… | 傳送自… | 从…发送 | 从…发出 | 從…發送
    從…傳送 | 從…寄出 | 由…发送 | 由…發送 | 使用…发送 | 使用…發送 | 获取… | 取得… | 下载… | 下載…
    …から送信 | …から送信されました | …で送信 | …에서 보냄 | …에서 보낸 메일 | …에서 전송됨 | …에서 보냈습니다
    von meinem … gesendet | gesendet von … | gesendet mit … | gesendet über … | holen sie sich … | laden sie …
    outlook für … herunterladen | outlook für … beziehen
    envoyé de … | envoyé depuis … | envoyé à partir de … | envoyé avec … | envoyé via … | obtenez … | obtenir …
    télécharger … | enviado desde … | enviado do … | enviado de … | enviado a partir do … | enviado pelo …
    enviado com … | obtener … | obter … | inviato da … | inviato dal … | inviato con … | ottieni … | scarica …
    verzonden vanaf … | verzonden vanuit … | verzonden met … | verstuurd vanaf … | download outlook voor …
    outlook voor … ophalen | wysłane z … | wysłano z … | pobierz … | отправлено с … | отправлено из … | скачать …
    надіслано з … | надіслано із … | skickat från … | sendt fra … | sent fra … | hent … | skaffa … | hämta …
    lähetetty … | hanki … | odesláno z … | odoslané z … | … gönderildi | … edinin | trimis de pe …
"""
_DEVICE = r"\s*(?:[^.。!！?？,，;；:：]|\.(?=\w)){1,60}"
_ADDED = re.compile(
    "|".join(
        _DEVICE.join(re.escape(words.strip()) for words in form.split("…"))
        for form in re.split(r"[|\n]", _ADDED_FORMS.strip())
    ),
    re.IGNORECASE,
)
_DEVICE_WORD = re.compile(
    r"手机|手機|平板|邮|郵|客户端|客戶端|安卓|华为|華為|小米|荣耀|榮耀|三星|微信|飞书|钉钉"
    r"|スマート|휴대|핸드폰|스마트|갤럭시|phone|ipad|ios|android|oppo|vivo|huawei|xiaomi|redmi|honor|pixel|samsung|galaxy|blackberry|nokia|xperia|tablet"
    r"|mobil|telefon|téléphone|teléfono|celular|телефон|смартфон|puhelim|outlook|mail|windows|\bmac|app\b|\bqq|proton|yahoo|avast"
    r"|gmx|web\.de",
    re.IGNORECASE,
)
_LINK = re.compile("<[^<>]*>")


def is_added(line: str) -> bool:
    """ "Sent from my iPhone" and its like."""
    if len(line) > MAX_CHARS or _DEVICE_WORD.search(line) is None:
        return False
    bare = _LINK.sub("", line).strip("-–—_<>[]()（）【】*~ .。!！")
    return len(bare) <= _ADDED_CHARS and _ADDED.fullmatch(bare) is not None


# Signatures

_CONTACT = re.compile(
    r"[^\s@]@[^\s@]|https?:|www\.|\+?\(?\d[\d\s().-]{6,}\d"
    r"|^(?:tel|phone|mobile|mob|cell|fax|direct|office|e-?mail|web|skype|wechat|whatsapp|telefon|tél|teléfono|móvil|тел)\b"
    r"|^(?:电话|電話|手机|手機|邮箱|郵箱|地址|传真|傳真|微信|网址|網址|座机|分机|邮编|住所|携帯|전화|휴대|팩스|주소)",
    re.IGNORECASE,
)
_POST = re.compile(
    r"\b(?:GmbH|AG|Ltd|Inc|LLC|Corp|S\.A\.|S\.r\.l|B\.V\.|Manager|Director|Engineer|Sales|Department|mailing list)\b"
    r"|公司|集团|集團|部门|经理|經理|工程师|工程師|主管|总监|助理|株式会社|有限会社|주식회사",
    re.IGNORECASE,
)
_NOTICE = re.compile(
    r"confidential|privileged|disclaimer|intended (?:only|solely|recipient)|unauthori[sz]ed|checked for viruses"
    r"|virus-free|consider the environment|保密|机密|機密|特定收件人|误收|誤收|免责声明|免責聲明|杀毒"
    r"|vertraulich|confidentiel|confidencial|riservat|vertrouwelijk|poufn|конфиденциальн|fortrolig|konfidentiell|기밀",
    re.IGNORECASE,
)


def is_contact(line: str) -> bool:
    """Whether a line says where somebody can be reached."""
    return _CONTACT.search(line[:MAX_CHARS]) is not None or is_added(line)


def is_post(line: str) -> bool:
    """Whether a line names a firm or a position."""
    return _POST.search(line[:MAX_CHARS]) is not None


def is_notice(line: str) -> bool:
    """Whether a line says that the message is confidential, or clean, or better not printed."""
    return _NOTICE.search(line) is not None


# What says that the text below is meant to be read

_POINTS_BELOW = re.compile(
    r"(?<!\w)(?:fyi|fwd?|below|beneath|forwarding|forwarded|inline|in[- ]line|in red|in blue|interleaved"
    r"|following (?:mail|message|email)|zur info|zur kenntnis|unten|weiterleit\w*|weitergeleitet|im text|pour info\w*"
    r"|ci-dessous|plus bas|para su información|más abajo|abaixo|per conoscenza|qui sotto|ter info|zie onder|hieronder"
    r"|poniżej|do wiadomości|ниже|nedan|nedenfor|alla|níže|aşağıda\w*)(?!\w)"
    r"|见下|如下|下面|下方|下文|以下|转发|轉發|轉寄|供参考|供參考|知悉|文中|红字|红色|蓝色|紅字|紅色|附在后面|附在下"
    r"|下記|転送|赤字|参考まで|아래|전달|본문에",
    re.IGNORECASE,
)
_POINTING_LINES, _POINTING_CHARS = 4, 160


def points_below(lines: list[str]) -> bool:
    """Whether few and short lines send the reader on to what follows, or the last one ends in a colon."""
    if lines and lines[-1].endswith((":", "：")):
        return True
    text = " ".join(lines) if len(lines) <= _POINTING_LINES else ""
    return len(text) <= _POINTING_CHARS and _POINTS_BELOW.search(text) is not None
