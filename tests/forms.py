"""Forms as SDKs write them, for tests that write some of it otherwise."""

from collections.abc import Iterable

BOUNDARY = "b0undary_-x"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def part(
    name: str, content: bytes | str, *, filename: str | None = None, more: Iterable[str] = ()
) -> bytes:
    """One part, without the delimiters around it."""
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    data = content.encode() if isinstance(content, str) else content
    return "\r\n".join([disposition, *more, "", ""]).encode() + data


def form(*parts: bytes, boundary: str = BOUNDARY, end: bytes = b"\r\n") -> bytes:
    """The body that has these parts."""
    delimiter = b"--" + boundary.encode()
    return b"".join(delimiter + b"\r\n" + one + b"\r\n" for one in parts) + delimiter + b"--" + end


def sound(model: str = "whisper-1", content: bytes = b"RIFF", **fields: str) -> bytes:
    """A transcription's form."""
    named = [part(name, value) for name, value in fields.items()]
    return form(part("model", model), *named, part("file", content, filename="a.wav"))
