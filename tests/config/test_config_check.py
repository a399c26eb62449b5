"""`extauthz config check`: good files pass; of a bad one every error is told, with its path."""

from pathlib import Path

import pytest

from extauthz.cli import main

HERE = Path(__file__).parent
EXPECTED = "# error: "


def files(folder: str) -> list[Path]:
    return sorted((HERE / folder).glob("*.yaml"))


def check(path: Path) -> int | str | None:
    try:
        main(["config", "check", "-c", str(path)])
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("path", files("bad"), ids=lambda path: path.stem)
def test_every_error_of_a_bad_config_is_told_with_its_path(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_lines = path.read_text(errors="replace").splitlines()
    expected = [line.removeprefix(EXPECTED) for line in first_lines if line.startswith(EXPECTED)]

    status = check(path)

    head, *errors = capsys.readouterr().err.splitlines()
    assert (status, [line.strip() for line in errors]) == (1, expected)
    assert head.startswith("extauthz: ")


@pytest.mark.parametrize("path", files("good"), ids=lambda path: path.stem)
def test_a_good_config_passes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(path) == 0
    assert "good" in capsys.readouterr().out


def test_a_config_that_is_not_there_names_the_command_that_writes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path / "extauthz.yaml") == 1
    assert "extauthz init" in capsys.readouterr().err


def test_checking_a_config_makes_no_files(tmp_path: Path) -> None:
    config = tmp_path / "extauthz.yaml"
    config.write_text((HERE / "good" / "smallest.yaml").read_text())

    check(config)

    assert list(tmp_path.iterdir()) == [config]
