"""A form is read in one way, or not at all: by the strict reader, and by two that others wrote."""

import asyncio
import email.message
from email.parser import BytesFeedParser
from typing import Any

import pytest
from aiohttp import MultipartReader, StreamReader
from aiohttp.base_protocol import BaseProtocol
from forms import BOUNDARY, FORM_TYPE, form, part
from hypothesis import given, settings
from hypothesis import strategies as st

from extauthz.providers.base import Request, RequestError
from extauthz.providers.multipart import Part, parse_form, read_parts
from extauthz.reasons import Reason

MODEL = part("model", "whisper-1")
FILE = part("file", b"\x00\xffRIFF\r\n\r\nx", filename="a.wav", more=["Content-Type: audio/wav"])
GOOD = form(MODEL, FILE)
FIELDS, FILES = frozenset(("model", "list[]", "prompt")), frozenset(("file", "image", "image[]"))


def read(body: bytes, content_type: str = FORM_TYPE) -> list[Part]:
    return list(read_parts(body, content_type))


def reason_of(body: bytes, content_type: str = FORM_TYPE) -> Reason:
    with pytest.raises(RequestError) as caught:
        parse_form(Request(body, content_type=content_type), FIELDS, FILES)
    assert len(caught.value.message) > 40, "it says what to do"
    return caught.value.reason


def test_the_form_of_an_sdk_is_read():
    assert read(GOOD) == [Part("model", "whisper-1", 9), Part("file", None, 11)]
    assert read(form(MODEL, FILE, end=b"")) == read(GOOD)


@pytest.mark.parametrize(
    "written",
    [
        part("model", "m", more=["Content-Type: text/plain"]),
        part("model", "m", more=["content-type: text/plain; charset=UTF-8"]),
        part("model", "m", more=["Content-Length: 1"]),
        b"content-type: text/plain\r\ncontent-disposition: form-data; name=model\r\n\r\nm",
    ],
)
def test_what_other_sdks_write_is_read_too(written):
    assert read(form(written)) == [Part("model", "m", 1)]


@pytest.mark.parametrize(
    "content_type",
    [
        f"multipart/form-data; boundary={BOUNDARY}",
        f'multipart/form-data; boundary="{BOUNDARY}"',
    ],
)
def test_a_boundary_may_be_quoted(content_type):
    assert read(GOOD, content_type) == read(GOOD)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        f'multipart/form-data; boundary="{BOUNDARY}',
        f"multipart/form-data; boundary={BOUNDARY} ",
        f"multipart/form-data; boundary={BOUNDARY}; boundary=other",
        f"multipart/form-data; boundary={BOUNDARY}; charset=utf-16",
        f"multipart/form-data; charset=utf-7; boundary={BOUNDARY}",
        f"multipart/form-data; boundary={BOUNDARY}, application/json",
        f"application/json, multipart/form-data; boundary={BOUNDARY}",
        f"multipart/mixed; boundary={BOUNDARY}",
        f"multipart/related; boundary={BOUNDARY}",
        f"multipart/form-data; Boundary*=utf-8''{BOUNDARY}",
        f"multipart/form-data;\tboundary={BOUNDARY}",
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/form-data; boundary=a b",
        "multipart/form-data; boundary=ümlaut",
        f"multipart/form-data; boundary={BOUNDARY}\n",
    ],
)
def test_a_content_type_that_leaves_anything_open_is_refused(content_type):
    assert reason_of(GOOD, content_type) is Reason.UNPARSEABLE_BODY


D, HEAD = f"--{BOUNDARY}".encode(), b'Content-Disposition: form-data; name="model"'


def test_a_boundary_that_ends_in_a_dash_is_refused():
    body = form(MODEL, boundary="ends-")
    assert reason_of(body, "multipart/form-data; boundary=ends-") is Reason.UNPARSEABLE_BODY


AMBIGUOUS: dict[str, bytes] = {
    "nothing": b"",
    "no parts": D + b"--\r\n",
    "JSON": b'{"model":"whisper-1"}',
    "a preamble": b"x\r\n" + GOOD,
    "an empty line before": b"\r\n" + GOOD,
    "an epilogue": GOOD + b"x",
    "a second form behind": GOOD + GOOD,
    "a line break too many": GOOD + b"\r\n",
    "no last boundary": GOOD.removesuffix(D + b"--\r\n"),
    "half of the last boundary": GOOD[:-5],
    "one dash of the last boundary": form(MODEL)[:-3],
    "a boundary in the middle of a line": form(part("prompt", b"x" + D + b"\r\n" + MODEL)),
    "a boundary at the end of a line": form(part("prompt", b"x" + D)),
    "a boundary within a file": form(part("file", b"a\r\n" + D + b"x", filename="a")),
    "a boundary after a single line feed": form(
        part("file", b"\n" + D + b"\n" + MODEL + b"\n", filename="a")
    ),
    "a boundary with blanks behind it": GOOD.replace(D + b"\r\n", D + b" \r\n"),
    "line feeds only": GOOD.replace(b"\r\n", b"\n"),
    "carriage returns only": GOOD.replace(b"\r\n", b"\r"),
    "an end in the middle": form(MODEL).removesuffix(b"\r\n") + b"\r\n" + form(FILE),
    "another boundary than said": form(MODEL, boundary="other"),
    "a boundary that goes on": form(MODEL, boundary=BOUNDARY + "x"),
    "no headers": form(b"\r\n\r\nx"),
    "no headers at all": form(b"x"),
    "no blank line": form(HEAD),
    "a blank line that is the boundary's": form(HEAD + b"\r\n"),
    "a folded header": form(HEAD.replace(b"; ", b";\r\n ") + b"\r\n\r\nm"),
    "a header folded by a tab": form(HEAD + b"\r\n\tx: y\r\n\r\nm"),
    "a line feed within the headers": form(HEAD + b"\nX-A: b\r\n\r\nm"),
    "a NUL within the headers": form(HEAD + b"\x00\r\n\r\nm"),
    "a blank before the colon": form(HEAD.replace(b":", b" :") + b"\r\n\r\nm"),
    "no blank after the colon": form(HEAD.replace(b": ", b":") + b"\r\n\r\nm"),
    "a tab after the colon": form(HEAD.replace(b": ", b":\t") + b"\r\n\r\nm"),
    "two dispositions": form(HEAD + b"\r\n" + HEAD.replace(b"model", b"prompt") + b"\r\n\r\nm"),
    "two dispositions in other cases": form(HEAD + b"\r\n" + HEAD.lower() + b"\r\n\r\nm"),
    "two types": form(part("model", "m", more=["Content-Type: text/plain"] * 2)),
    "a disposition that is none": form(HEAD.replace(b"form-data", b"attachment") + b"\r\n\r\nm"),
    "no name": form(b"Content-Disposition: form-data\r\n\r\nm"),
    "an empty name": form(part("", "m")),
    "two names": form(HEAD + b'; name="prompt"\r\n\r\nm'),
    "an extended name": form(HEAD + b"; name*=utf-8''prompt\r\n\r\nm"),
    "a name in pieces": form(HEAD.replace(b'name="model"', b'name*0="mo"; name*1="del"')
                             + b"\r\n\r\nm"),
    "an escaped name": form(part('mo\\"del', "m")),
    "a percent sign in a name": form(part("mod%65l", "m")),
    "blanks in a name": form(part(" model", "m")),
    "a name of another alphabet": form(part("m\u043edel", "m")),
    "a quote that never ends": form(HEAD[:-1] + b"\r\n\r\nm"),
    "a name in single quotes": form(HEAD.replace(b'"', b"'") + b"\r\n\r\nm"),
    "a parameter that nobody knows": form(HEAD + b"; x=y\r\n\r\nm"),
    "a semicolon at the end": form(HEAD + b";\r\n\r\nm"),
    "a blank at the end": form(HEAD + b" \r\n\r\nm"),
    "an empty file name": form(part("file", "m", filename="")),
    "a file name with a quote": form(part("file", "m", filename='a\\"; name=\\"model')),
    "a file name with a semicolon": form(part("file", "m", filename="a; name=model")),
    "two file names": form(part("file", "m", filename='a"; filename="b')),
    "an extended file name": form(part("file", "m", filename="a\"; filename*=utf-8''b")[:-1]),
    "a file name that is not UTF-8": form(
        part("file", "m", filename="XX").replace(b"XX", b"\xff\xfe")
    ),
    "a transfer encoding": form(part("model", "bQ==", more=["Content-Transfer-Encoding: base64"])),
    "a transfer encoding of no meaning": form(
        part("model", "m", more=["Content-Transfer-Encoding: binary"])
    ),
    "a header that nobody knows": form(part("model", "m", more=["X-A: b"])),
    "a length that is another": form(part("model", "mm", more=["Content-Length: 1"])),
    "a length with a plus": form(part("model", "m", more=["Content-Length: +1"])),
    "a model in UTF-16": form(part("model", "m".encode("utf-16-le"), more=[
        "Content-Type: text/plain; charset=utf-16"])),
    "a field with another character set": form(
        part("model", "m", more=["Content-Type: text/plain; charset=utf-7"])
    ),
    "a field that is JSON": form(part("model", '"m"', more=["Content-Type: application/json"])),
    "a field that is a stream of bytes": form(
        part("model", "m", more=["Content-Type: application/octet-stream"])
    ),
    "a form within the form": form(
        part("file", form(MODEL, boundary="inner"), filename="a",
             more=["Content-Type: multipart/mixed; boundary=inner"])
    ),
    "a message within the form": form(
        part("file", b"\r\n", filename="a", more=["Content-Type: message/rfc822"])
    ),
    "a field that is not UTF-8": form(part("model", b"m\xff")),
    "a surrogate in UTF-8": form(part("model", b"m\xed\xa0\x80")),
    "an overlong character": form(part("model", b"m\xc0\xad")),
    "the model as a file": form(part("model", "m", filename="model"), FILE),
    "the file as a field": form(MODEL, part("file", "RIFF")),
    "headers without end": form(part("model", "m", more=["Content-Type: text/plain" + " " * 2000])),
    "more parts than any call has": form(*[part("list[]", "x")] * 80),
}  # fmt: skip


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_a_form_that_could_be_read_otherwise_is_refused(what):
    if what == "no parts":
        assert read(AMBIGUOUS[what]) == []  # then its fields are missing
    else:
        assert reason_of(AMBIGUOUS[what]) is Reason.UNPARSEABLE_BODY


@pytest.mark.parametrize(
    "parts",
    [
        (MODEL, MODEL),
        (MODEL, part("model", "dear"), FILE),
        (FILE, FILE),
        (part("image", b"x", filename="a"), part("image[]", b"x", filename="a")),
        (part("image[]", b"x", filename="a"), part("image", b"x", filename="a")),
    ],
)
def test_what_stands_twice_is_ambiguous(parts):
    assert reason_of(form(*parts)) is Reason.AMBIGUOUS_BODY


@pytest.mark.parametrize("name", ["model[]", "Model", "MODEL", "_charset_", "nobody_knows"])
def test_a_name_that_is_not_known_is_refused_by_what_is(name):
    assert reason_of(form(MODEL, part(name, "dear"))) is Reason.UNMETERED_ENDPOINT


def test_a_list_may_stand_again():
    parsed = parse_form(
        Request(
            form(part("list[]", "ab"), part("image[]", b"x", filename="a"), part("list[]", "c"),
                 part("image[]", b"yy", filename="b")),
            content_type=FORM_TYPE,
        ),
        FIELDS, FILES,
    )  # fmt: skip
    assert parsed.files_bytes == {"image[]": (1, 2)}
    assert parsed.text == "ab\nc"


@pytest.mark.parametrize("text", ["", " m", "m ", "m\r\n", "m\u00a0", "m\x00", "x" * 257, "\u043c"])
def test_a_model_is_one_name_without_blanks(text):
    parsed = parse_form(Request(form(part("model", text)), content_type=FORM_TYPE), FIELDS, FILES)
    with pytest.raises(RequestError) as caught:
        parsed.name("model")
    assert caught.value.reason is Reason.UNPARSEABLE_BODY


@pytest.mark.parametrize("text", ["", "0", "-1", "01", "1.0", "1e1", "+1", " 1", "\u0661", "11"])
def test_a_count_is_written_in_one_way(text):
    parsed = parse_form(Request(form(part("model", text)), content_type=FORM_TYPE), FIELDS, FILES)
    with pytest.raises(RequestError):
        parsed.count("model", 10)


@pytest.mark.parametrize("text", ["", "True", "1", "yes", "true ", "null"])
def test_a_flag_is_true_or_false(text):
    parsed = parse_form(Request(form(part("model", text)), content_type=FORM_TYPE), FIELDS, FILES)
    with pytest.raises(RequestError):
        parsed.flag("model")


# The same by readers that others wrote: each part's name, whether it is a file, and its bytes.

Heard = list[tuple[str | None, bool, bytes]]


def by_email(body: bytes, content_type: str) -> Heard:
    parser = BytesFeedParser()
    parser.feed(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    message = parser.close()
    assert message.is_multipart()
    heard: Heard = []
    for one in message.get_payload():
        assert isinstance(one, email.message.Message)
        content = one.get_payload(decode=True)
        name = one.get_param("name", header="content-disposition")
        assert isinstance(content, bytes)
        assert isinstance(name, str)
        heard.append((name, one.get_filename() is not None, content))
    return heard


def by_aiohttp(body: bytes, content_type: str) -> Heard:
    async def hear() -> Heard:
        loop = asyncio.get_running_loop()
        stream = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
        stream.feed_data(body)
        stream.feed_eof()
        heard: Heard = []
        reader = MultipartReader({"Content-Type": content_type}, stream)
        while (one := await reader.next()) is not None:
            assert not isinstance(one, MultipartReader)
            heard.append((one.name, one.filename is not None, bytes(await one.read())))
        return heard

    return asyncio.run(hear())


def agreed(body: bytes, content_type: str) -> None:
    """Refused, or read by all alike."""
    try:
        parts = read(body, content_type)
    except RequestError:
        return
    if not parts:
        return
    for heard in (by_email(body, content_type), by_aiohttp(body, content_type)):
        assert [(name, is_file, len(content)) for name, is_file, content in heard] == [
            (one.name, one.text is None, one.size_bytes) for one in parts
        ]
        for one, (_, _, content) in zip(parts, heard, strict=True):
            assert one.text is None or one.text.encode() == content


TRICKS = st.sampled_from([
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"--", b"-", D, D + b"--", b"\r\n" + D, b"\r\n" + D + b"--",
    b"\n" + D + b"\n", D + b"\r\n", HEAD, b"Content-Type: text/plain", b"Content-Length: 1",
    b"Content-Transfer-Encoding: base64", b'; filename="a"', b'; name="model"', b" ", b"\t",
    b'"', b";", b"model", b"[]", b"\x00", b"\xff", b"x",
    b"Content-Type: multipart/mixed; boundary=x",
])  # fmt: skip
CONTENTS = st.lists(st.one_of(TRICKS, st.binary(max_size=6)), max_size=4).map(b"".join)
NAMES = st.sampled_from(["model", "prompt", "file", "list[]", "image"])
LATIN = st.text(st.characters(max_codepoint=255, exclude_characters="\0"), max_size=9)
FIELD = st.builds(
    lambda name, text, more: part(name, text, more=more),
    NAMES,
    LATIN | CONTENTS,
    st.sampled_from(
        [[], ["Content-Type: text/plain"], ["content-type: text/plain; charset=UTF-8"]]
    ),
)
FILED = st.builds(
    lambda name, content, filename, more: part(name, content, filename=filename, more=more),
    NAMES,
    CONTENTS,
    st.sampled_from(["a.wav", "\u00e4 b", "a'b", "a b", "%22"]),
    st.sampled_from([[], ["Content-Type: audio/wav"], ["CONTENT-TYPE: audio/ogg; codecs=opus"]]),
)


@st.composite
def bodies(draw: Any) -> tuple[bytes, str]:
    """A form as an SDK writes it, with some of its bytes taken out, put in or put elsewhere."""
    boundary = draw(st.sampled_from([BOUNDARY, "xyz", "--a", "-a", "a-b", "a--b", "000"]))
    parts = draw(st.lists(FIELD | FILED, min_size=1, max_size=4))
    body = form(*parts, boundary=boundary, end=draw(st.sampled_from([b"", b"\r\n"])))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        at = draw(st.integers(0, len(body)))
        until = min(len(body), at + draw(st.integers(0, 3)))
        body = body[:at] + draw(TRICKS) + body[until:]
    quote = draw(st.sampled_from(['"', ""]))
    return body, f"multipart/form-data; boundary={quote}{boundary}{quote}"


@settings(max_examples=300)
@given(bodies())
def test_no_form_is_accepted_that_others_read_differently(case):
    agreed(*case)


@pytest.mark.parametrize("what", ["the form of an SDK", *AMBIGUOUS])
def test_the_other_readers_agree_about_what_is_not_refused(what):
    agreed(AMBIGUOUS.get(what, GOOD), FORM_TYPE)


def readings(body: bytes) -> set[str]:
    heard = set()
    for reader in (by_email, by_aiohttp):
        try:
            heard.add(repr([(name, content) for name, _, content in reader(body, FORM_TYPE)]))
        except Exception:  # noqa: BLE001 - however it refuses
            heard.add("refused")
    return heard


def test_the_other_readers_do_differ_about_what_is_refused():
    """Else agreeing with them would show nothing."""
    assert sum(len(readings(body)) > 1 for body in AMBIGUOUS.values()) >= 10
