"""A body that two readers could understand differently is refused, and never quoted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.providers import strict_json
from extauthz.providers.base import RequestError
from extauthz.providers.strict_json import (
    ROOT_KEYS_MAX,
    must_be_plain,
    parse_object,
    read_count,
    read_flag,
    read_list,
    read_string,
)
from extauthz.reasons import Reason

MARK = "PlantedSecret"

AMBIGUOUS = {
    "a key twice": b'{"model":"a","model":"b"}',
    "a key twice, one escaped": b'{"model":"a","mod\\u0065l":"b"}',
    "a key twice, deep": b'{"m":[{"x":{"PlantedSecret":1,"PlantedSecret":2}}]}',
    "a key twice, both escaped": b'{"m":{"\\u0061":1,"\\u0061":2}}',
    "a key in another case": b'{"model":"a","MODEL":"b"}',
    "a key in upper case": b'{"model":"a","N":5}',
    "a key that folds": '{"model":"a","maxto\u212aens":5}'.encode(),
    "a key that folds, escaped": b'{"model":"a","me\\u017f\\u017fages":5}',
}
UNPARSEABLE = {
    "empty": b"",
    "blank": b" \n\t",
    "NaN": b'{"PlantedSecret":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "infinity by exponent": b'{"a":1e999}',
    "infinity, deep": b'{"a":[{"b":[[-1E+400]]}]}',
    "infinity, by leading digits": b'{"a":' + b"1" * 400 + b".5}",
    "an integer beyond a double": b'{"a":' + b"9" * 400 + b"}",
    "an integer beyond all": b'{"a":' + b"9" * 50_000 + b"}",
    "a leading zero": b'{"a":01}',
    "no digit after the point": b'{"a":1.}',
    "a plus": b'{"a":+1}',
    "hex": b'{"a":0x10}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "UTF-16 without mark": '{"a":1}'.encode("utf-16-le"),
    "UTF-32": '{"a":1}'.encode("utf-32"),
    "invalid UTF-8": b'{"a":"PlantedSecret\xff"}',
    "overlong UTF-8": b'{"a":"\xc0\xaf"}',
    "UTF-8 of a surrogate": b'{"a":"\xed\xa0\x80"}',
    "invalid UTF-8 in a key": b'{"\xff":1}',
    "lone leading surrogate": b'{"a":"\\ud800"}',
    "lone trailing surrogate": b'{"a":"\\udc00x"}',
    "control character": b'{"a":"\x01"}',
    "line break in a string": b'{"a":"PlantedSecret\n"}',
    "NUL": b'{"a":"\x00"}',
    "NUL behind": b"{}\x00",
    "trailing text": b'{"a":1} PlantedSecret',
    "two documents": b'{"a":1}{"a":2}',
    "a comment": b'{"a":1/*PlantedSecret*/}',
    "a line comment": b'{"a":1}//PlantedSecret',
    "trailing comma": b'{"a":1,}',
    "single quotes": b"{'PlantedSecret':1}",
    "a bare key": b"{PlantedSecret:1}",
    "an unknown escape": b'{"a":"\\x41"}',
    "form feed as blank": b'\x0c{"a":1}',
    "no-break space": b'\xc2\xa0{"a":1}',
    "cut off": b'{"a":"PlantedSecret',
    "an array": b'["PlantedSecret"]',
    "a string": b'"PlantedSecret"',
    "null": b"null",
    "deep lists": b'{"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "deep objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "only brackets": b"[" * 60_000,
    "too many root keys": json.dumps({f"k{n}": n for n in range(ROOT_KEYS_MAX + 1)}).encode(),
}


def refusal(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_object(body)
    return caught.value


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_two_readers_may_read_differently_is_ambiguous(name):
    error = refusal(AMBIGUOUS[name])
    assert error.reason is Reason.AMBIGUOUS_BODY
    assert MARK not in error.message


@pytest.mark.parametrize("name", UNPARSEABLE)
def test_what_is_no_strict_json_object_is_refused_and_not_quoted(name):
    error = refusal(UNPARSEABLE[name])
    assert error.reason is Reason.UNPARSEABLE_BODY
    assert MARK not in error.message
    assert len(error.message) < 200


@pytest.mark.parametrize(
    ("body", "document"),
    [
        (b'{"a":-0}', {"a": 0}),
        (b'{"a":1e308}', {"a": 1e308}),
        (b'{"a":1e-999}', {"a": 0.0}),
        (b'{"a":"1e999"}', {"a": "1e999"}),
        (b'{"a":"' + b"9" * 400 + b'"}', {"a": "9" * 400}),
        (b'{"a":' + b"9" * 300 + b"}", {"a": int("9" * 300)}),
        (b' \t\r\n{"a" : [ ] } \n', {"a": []}),
        (b'{"a":{"B":1,"b":2}}', {"a": {"B": 1, "b": 2}}),
        (b'{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b'{"":1}', {"": 1}),
    ],
)
def test_what_all_readers_read_alike_is_read(body, document):
    assert parse_object(body) == document


jsons = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
roots = st.dictionaries(st.text().filter(lambda key: key == key.casefold()), jsons, max_size=6)


@given(roots, st.booleans())
def test_every_json_object_is_read_as_the_standard_library_reads_it(document, ascii_only):
    body = json.dumps(document, ensure_ascii=ascii_only).encode()
    assert parse_object(body) == json.loads(body)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_an_object_or_a_refusal(body):
    try:
        assert isinstance(parse_object(body), dict)
    except RequestError as error:
        assert error.reason in (Reason.UNPARSEABLE_BODY, Reason.AMBIGUOUS_BODY)


def test_the_search_for_infinities_looks_at_each_value_once():
    class Watched(list):
        looks = 0

        def __iter__(self):
            Watched.looks += len(self)
            return super().__iter__()

    document = Watched([1.5, Watched([2, Watched()])] * 100)
    assert strict_json._all_finite({"a": document})
    assert Watched.looks == 2 * 100 + 100 * 2


@pytest.mark.parametrize("value", [None, "", 5, True, [], {}, "x" * 257])
def test_a_name_is_a_string_of_bounded_length(value):
    with pytest.raises(RequestError):
        read_string({"model": value}, "model")


@pytest.mark.parametrize("value", [0, 1, "true", "", [], 0.0])
def test_a_flag_is_true_false_or_absent(value):
    with pytest.raises(RequestError):
        read_flag({"stream": value}, "stream")
    assert read_flag({"stream": None}, "stream") is read_flag({}, "stream") is False
    assert read_flag({"stream": True}, "stream") is True


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, False, "5", [], 11, 10**30, 1e1])
def test_a_count_is_a_whole_number_within_its_bound(value):
    with pytest.raises(RequestError):
        read_count({"n": value}, "n", 10)
    assert read_count({"n": None}, "n", 10) is read_count({}, "n", 10) is None
    assert read_count({"n": 10}, "n", 10) == 10


@pytest.mark.parametrize("value", [{}, "", 0, False])
def test_a_list_is_a_list_or_absent(value):
    with pytest.raises(RequestError):
        read_list({"tools": value}, "tools")
    assert read_list({"tools": None}, "tools") == read_list({}, "tools") == []


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "Application/JSON ; Charset=us-ascii",
        "application/vnd.api+json",
        "text/json",
        "text/plain;charset=utf8",
    ],
)
def test_a_body_that_is_called_json_in_utf_8_is_read(content_type):
    must_be_plain({"content-type": content_type})


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-7",
        "application/json; charset*=us-ascii''utf-7",
        "application/json; charset*0=utf;charset*1=-7",
        'application/json; "charset"=utf-7',
        "application/json; charset\xa0=utf-7",
        "application/json; charset!=utf-7",  # the same, as Envoy shows it to Check
        "application/json;charset\x0b=utf-7",
        'application/json; charset="utf-8\\"; charset=utf-7',
        'application/json; charset="utf-8',
        "application/json; charset=utf-8; charset=utf-7",
        "application/json; charset=utf-8, application/json; charset=utf-7",
        "application/json, multipart/form-data; boundary=x",
        "application/json; boundary=x",
        "application/json\xa0",
        "application/json\n",
        "applic\u0430tion/json",
        "application/x-www-form-urlencoded",
        "application/x-www-form-urlencoded+json",
        "application/grpc",
        "application/grpc+json",
        "application/grpc-web+json",
        "Application/GRPC+json",
        "multipart/form-data; boundary=x",
    ],
)
def test_a_body_that_any_server_could_take_for_something_else_is_refused(content_type):
    with pytest.raises(RequestError) as caught:
        must_be_plain({"content-type": content_type})
    assert caught.value.reason is Reason.UNPARSEABLE_BODY
