"""A submitted web form, in any of its three formats.

The form as it was when it was filled in is in the facts: `fields` (name -> type and detail, see `gateway.fields.Spec`),
`source`, `language`, `suspect`. What the configuration says now does not matter. Where the channel knows who fills it
in, they say so: `identities` (as in the envelope), `conversation`, and in `verified` the fields that it vouches for.

    theirs                          ours
    who is logged in                sender.identities, verified, and conversation
    subject, text, name             subject, text and full_text, sender.name
    email, phone of that type       sender.identities, not verified but where the facts say so
    files                           parts
    ?source=                        fields.source
    every other field               fields, by its own name
"""

from collections.abc import Iterator, Mapping

from gateway.contract import Draft, Part, StoredMessage
from gateway.envelope import Identity, Message, Oddity, Sender
from gateway.fields import Fault, Given, Spec, Value, read, read_body
from gateway.text import file_name, one_line, plain_text

_PLACES = {"subject", "text", "name"}
_IDENTITIES = {"email", "phone"}
SUSPECTED = "suspected-spam"


def normalize(raw: StoredMessage) -> Draft:
    """Raises Rejected when the body cannot be read."""
    given = read_body(raw.body, raw.content_type, keep_content=True)
    specs = {name: Spec(*spec) for name, spec in raw.facts.get("fields", {}).items()}
    places: dict[str, str] = {}
    identities = [Identity(**known) for known in raw.facts.get("identities", ())]
    verified = raw.facts.get("verified", ())
    fields: dict[str, Value] = {}
    for name, type_, value in _values(specs, given):
        if name in _PLACES and isinstance(value, str):
            places[name] = value
        elif type_ in _IDENTITIES and (name == type_ or name in verified):
            identities.append(Identity(kind=type_, value=str(value), verified=name in verified))
        else:
            fields[name] = value
    if source := raw.facts.get("source"):
        fields["source"] = source
    suspect = raw.facts.get("suspect")
    text = places.get("text", "")
    message = Message(
        kind="form",
        conversation=raw.facts.get("conversation"),
        sender=Sender(name=places.get("name"), identities=tuple(identities)),
        subject=places.get("subject"),
        text=text,
        full_text=text,
        language=raw.facts.get("language"),
        fields=fields,
        tags=(SUSPECTED,) if suspect else (),
        warnings=(Oddity(code="suspected_spam", detail=suspect),) if suspect else (),
    )
    return Draft(message, tuple(_parts(specs, given)))


def _values(specs: Mapping[str, Spec], given: Given) -> Iterator[tuple[str, str, Value]]:
    """Name, type and value of every field that has one."""
    for name, spec in specs.items():
        texts = given.values.get(name, [])
        if spec.type == "file":
            continue
        try:
            value = read(spec, texts)
        except Fault:
            # It was good when it was accepted: a library's tables have changed since. Then it is plain text.
            yield name, "text", "\n".join(map(plain_text, texts))
        else:
            if value is not None:
                yield name, spec.type, value


def _parts(specs: Mapping[str, Spec], given: Given) -> Iterator[Part]:
    for name, spec in specs.items():
        for upload in given.uploads.get(name, []) if spec.type == "file" else []:
            yield Part(upload.content, file_name(upload.filename), one_line(upload.content_type))
