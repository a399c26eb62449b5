"""The key of the books is read from where the config says, and is a secret or an error."""

from pathlib import Path

import pytest

from extauthz.archive import ArchiveError
from extauthz.config import Config
from extauthz.config.load import parse
from extauthz.server.archives import archives_of, books_key_variables

FILE = """
providers: {openai: {api: openai, upstream: "https://api.openai.com"}}
"""
SECRET = "0123456789abcdef" * 2


def config(books: str, base: Path) -> Config:
    return parse(f"{FILE}books: {books}", source="test", base=base)


def key_of(config: Config) -> bytes | None:
    return archives_of(config)("default").chain.key


def test_there_is_none_unless_the_config_says_so(tmp_path: Path) -> None:
    assert key_of(config("{}", tmp_path)) is None


def test_a_file_is_found_from_the_folder_of_the_config(tmp_path: Path) -> None:
    (tmp_path / "books.key").write_text(f"{SECRET}\n")

    assert key_of(config("{key: {file: books.key}}", tmp_path)) == SECRET.encode()


def test_a_key_in_a_file_changes_no_other_setting_of_the_books(tmp_path: Path) -> None:
    plain = config("{audit_every: 7m}", tmp_path).books
    with_key = config("{audit_every: 7m, key: {file: books.key}}", tmp_path).books

    assert with_key.audit_every == plain.audit_every


def test_a_variable_is_for_who_writes_the_books_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOKS_KEY", SECRET)
    with_key = config("{key: {env: BOOKS_KEY}}", tmp_path)

    assert key_of(with_key) == SECRET.encode()
    assert books_key_variables(with_key) == {"BOOKS_KEY"}


@pytest.mark.parametrize(
    ("books", "text"),
    [
        ("{key: {file: none}}", "cannot be read"),
        ("{key: {env: NO_SUCH_KEY}}", "NO_SUCH_KEY has 0 bytes: a key has at least 32"),
        ("{key: {file: short}}", "has 31 bytes"),
    ],
)
def test_a_key_that_is_none_is_an_error(tmp_path: Path, books: str, text: str) -> None:
    (tmp_path / "short").write_text("x" * 31)

    with pytest.raises(ArchiveError, match=text):
        archives_of(config(books, tmp_path))
