"""Reading a form (multipart/form-data) so that no other reader of it can understand something else.

RFC 7578 and RFC 2046 leave much open, and readers differ in all of it: a field that stands twice,
text before the first boundary and behind the last, line breaks of one byte, folded headers, a part
in another encoding, a boundary with blanks in it. The providers' SDKs use none of that, so it is
refused. Nothing is edited: Envoy passes on the bytes that are read here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from extauthz.providers.base import Request, RequestError
from extauthz.reasons import Reason

_PARTS_MAX = 64
_HEAD_BYTES_MAX = 1024

# Quoted or not, but of characters that need no quotes. One that ended in "-" could be taken for
# another with the two dashes of the last delimiter behind it.
_CONTENT_TYPE = re.compile(
    r'multipart/form-data; boundary=("?)([A-Za-z0-9_-]{0,69}[A-Za-z0-9_])\1', re.ASCII
)
_HEADER = re.compile(rb"([A-Za-z-]{1,64}): ([^\x00-\x1f\x7f]+)")
_DISPOSITION = re.compile(
    rb'form-data; name=(?:"([A-Za-z0-9_]{1,64}(?:\[\])?)"|([A-Za-z0-9_]{1,64}))'
    rb'(; filename=(?:"[^"\\;\x00-\x1f\x7f]{1,255}"|[A-Za-z0-9._-]{1,255}))?'
)
_TEXT_TYPE = re.compile(rb"text/plain(; ?charset=utf-?8)?", re.IGNORECASE)
_FILE_TYPE = re.compile(
    rb"(?!multipart/|message/)[a-z]+/[a-z0-9.+-]+(; ?codecs=[a-z0-9.]+)?", re.IGNORECASE
)


class Part(NamedTuple):
    """One part of a form: a field with its text, or a file, of which only the size is told."""

    name: str
    text: str | None
    size_bytes: int


def _refuse(what: str, reason: Reason = Reason.UNPARSEABLE_BODY) -> RequestError:
    """The text quotes nothing of the body, which may hold a prompt."""
    return RequestError(
        reason, f"the form could be read in more than one way: {what}. Send it as the SDKs do"
    )


def read_parts(body: bytes, content_type: str) -> Iterator[Part]:
    """Each part of a form, in order.

    Raises:
        RequestError: `unparseable_body` where the form is none, or not of the one shape that every
            reader reads alike.
    """
    found = _CONTENT_TYPE.fullmatch(content_type)
    if found is None:
        raise RequestError(
            Reason.UNPARSEABLE_BODY,
            "the request body is no form by its content-type: send 'multipart/form-data' with a "
            "boundary of letters, digits, '_' and '-'",
        )
    delimiter = b"--" + found[2].encode()
    if not body.startswith(delimiter):
        raise _refuse("it does not begin with its boundary")
    at = len(delimiter)
    for _ in range(_PARTS_MAX):
        if body.startswith(b"--", at):
            if body[at + 2 : at + 5] not in (b"", b"\r\n"):
                raise _refuse("something stands behind its last boundary")
            return
        # Wherever else the boundary stands, some reader may see it: so every place counts.
        end = body.find(delimiter, at)
        if not body.startswith(b"\r\n", at) or end < 0:
            raise _refuse("a boundary stands on no line of its own, or the last one is missing")
        yield _read_part(body, at + 2, end)
        at = end + len(delimiter)
    raise _refuse(f"it has {_PARTS_MAX} parts or more")


def _read_part(body: bytes, start: int, delimiter_at: int) -> Part:
    """The part between `start` and the delimiter, of which the line break before it is a part."""
    end = delimiter_at - 2
    head_end = body.find(b"\r\n\r\n", start, min(start + _HEAD_BYTES_MAX, end))
    if head_end < 0 or not body.startswith(b"\r\n", end):
        raise _refuse("a part has no headers, or its boundary stands in the middle of a line")
    content_at = head_end + 4
    headers = _read_headers(body[start:head_end])
    disposition = _DISPOSITION.fullmatch(headers.pop(b"content-disposition", b""))
    if disposition is None:
        raise _refuse("a part has an unusual Content-Disposition")
    try:
        disposition[0].decode()
    except UnicodeDecodeError:
        raise _refuse("a file's name is not UTF-8") from None
    is_file = disposition[3] is not None
    content_type = headers.pop(b"content-type", None)
    usual = _FILE_TYPE if is_file else _TEXT_TYPE
    if content_type is not None and not usual.fullmatch(content_type):
        raise _refuse("a part has an unusual Content-Type")
    if headers.pop(b"content-length", b"%d" % (end - content_at)) != b"%d" % (end - content_at):
        raise _refuse("a part is of another length than it says")
    if headers:
        raise _refuse("a part has a header beside Content-Disposition and Content-Type")
    name = (disposition[1] or disposition[2]).decode()
    if is_file:
        return Part(name, None, end - content_at)
    try:
        return Part(name, body[content_at:end].decode(), end - content_at)
    except UnicodeDecodeError:
        raise _refuse("a field is not UTF-8") from None


def _read_headers(head: bytes) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        header = _HEADER.fullmatch(line)
        if header is None or header[1].lower() in headers:
            raise _refuse("a header of a part is folded, stands twice, or is none")
        headers[header[1].lower()] = header[2]
    return headers


@dataclass(frozen=True, slots=True)
class Form:
    """A form that has no name but those that are known, and each as what it should be.

    Attributes:
        fields: the texts; those of a list joined, as only their size counts.
        files_bytes: the sizes of all files, by name.
    """

    fields: Mapping[str, str]
    files_bytes: Mapping[str, tuple[int, ...]]

    @property
    def text(self) -> str:
        """What all fields say together."""
        return "\n".join(self.fields.values())

    def name(self, field: str) -> str:
        """A required name of 1 to 256 printable characters of ASCII, without blanks.

        Raises:
            RequestError: it is missing, or something else.
        """
        text = self.fields.get(field, "")
        if not re.fullmatch(r"[!-~]{1,256}", text):
            raise RequestError(
                Reason.UNPARSEABLE_BODY,
                f"'{field}' must be a field of 1 to 256 printable characters, without blanks",
            )
        return text

    def flag(self, field: str) -> bool:
        """An optional `true` or `false`."""
        text = self.fields.get(field, "false")
        if text not in ("true", "false"):
            raise RequestError(Reason.UNPARSEABLE_BODY, f"'{field}' must be 'true' or 'false'")
        return text == "true"

    def count(self, field: str, maximum: int) -> int | None:
        """An optional whole number from 1 to `maximum`."""
        text = self.fields.get(field)
        if text is None:
            return None
        if not re.fullmatch(r"[1-9][0-9]{0,8}", text) or int(text) > maximum:
            raise RequestError(
                Reason.UNPARSEABLE_BODY,
                f"'{field}' must be a whole number from 1 to {maximum}, in digits",
            )
        return int(text)


def parse_form(request: Request, fields: frozenset[str], files: frozenset[str]) -> Form:
    """The form that a request is. A name of several values ends in `[]`, and may stand again.

    Raises:
        RequestError: `unmetered_endpoint` for a name that is not known; `ambiguous_body` for one
            that stands twice; `unparseable_body` for what no reader should have to guess at.
    """
    texts: dict[str, list[str]] = {}
    sizes: dict[str, list[int]] = {}
    for part in read_parts(request.body, request.content_type):
        is_file = part.text is None
        if part.name not in fields | files:
            raise RequestError(
                Reason.UNMETERED_ENDPOINT,
                "the form has a field that cannot be metered: send the call without it. "
                f"Those that can: {', '.join(sorted(fields | files))}",
            )
        if is_file is not (part.name in files):
            raise _refuse("a field is sent as a file, or a file as a field")
        name = part.name.removesuffix("[]")
        seen = {one for one in (*texts, *sizes) if one.removesuffix("[]") == name}
        if seen and (seen != {part.name} or not part.name.endswith("[]")):
            raise _refuse(f"'{name}' stands twice", Reason.AMBIGUOUS_BODY)
        if part.text is None:
            sizes.setdefault(part.name, []).append(part.size_bytes)
        else:
            texts.setdefault(part.name, []).append(part.text)
    return Form(
        {name: "\n".join(each) for name, each in texts.items()},
        {name: tuple(each) for name, each in sizes.items()},
    )
