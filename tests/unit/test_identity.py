"""Who asks: two places for one key, and never two keys."""

import contextlib
import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.identity import CredentialError, hash_key, make_key, read_credential
from extauthz.ids import uuid7


@given(st.binary(min_size=32, max_size=32))
def test_a_made_key_has_its_prefix_and_a_checksum_that_finds_typing_errors(entropy):
    key = make_key(entropy)
    body, _, checksum = key.rpartition("_")
    assert key.startswith("xa_")
    assert len(body) == len("xa_") + 43
    assert int(checksum, 16) == zlib.crc32(body.encode())


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_too_little_or_too_much_entropy_is_not_made(size):
    with pytest.raises(ValueError, match="32 random bytes"):
        make_key(b"x" * size)


def test_a_key_is_known_by_its_sha256_alone():
    assert hash_key("any string, ü") == (
        "sha256:" + hashlib.sha256("any string, ü".encode()).hexdigest()
    )


@given(st.text(st.characters()))
def test_every_header_text_has_a_hash(text):
    assert len(hash_key(text)) == len("sha256:") + 64


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer k1"},
        {"authorization": "bearer   k1  "},
        {"authorization": "BEARER k1"},
        {"x-api-key": "k1"},
        {"x-api-key": " k1 "},
        {"api-key": "k1"},
        {"authorization": "Bearer k1", "x-api-key": "k1"},
        {"authorization": "Basic abc", "x-api-key": "k1"},
        {"authorization": "Bearer ", "x-api-key": "k1"},
    ],
)
def test_the_key_is_read_from_where_the_sdks_put_it(headers):
    assert read_credential(headers) == "k1"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer  "},
        {"authorization": "k1"},
        {"authorization": "Basic k1"},
        {"authorization": "Bearerk1"},
        {"x-api-key": "  "},
        {"x-goog-api-key-of-others": "k1"},
        {"cookie": "k1"},
    ],
)
def test_without_a_key_in_its_place_nobody_asks(headers):
    with pytest.raises(CredentialError, match="no virtual key"):
        read_credential(headers)


def test_two_keys_that_differ_are_refused_without_telling_either():
    with pytest.raises(CredentialError, match="disagree") as caught:
        read_credential({"authorization": "Bearer first-key", "x-api-key": "second-key"})
    assert "first-key" not in str(caught.value)
    assert "second-key" not in str(caught.value)


@given(
    st.dictionaries(
        st.sampled_from(["authorization", "x-api-key", "api-key"]), st.text(st.characters())
    )
)
def test_no_header_makes_the_reader_fail_otherwise(headers):
    with contextlib.suppress(CredentialError):
        assert read_credential(headers)


@given(st.integers(0, 2**48 - 1))
def test_an_id_tells_when_it_was_minted(at_ms):
    text = uuid7(at_ms)
    assert int(text.replace("-", "")[:12], 16) == at_ms
    assert text[14] == "7"
    assert text[19] in "89ab"


def test_ids_of_one_instant_differ_and_later_ones_sort_behind():
    first = {uuid7(1_000) for _ in range(1000)}
    assert len(first) == 1000
    assert max(first) < uuid7(1_001)
