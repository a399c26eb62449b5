"""What fuzzing has found worth keeping is tried again with every run of the tests."""

import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.append(str(FUZZ))

from targets import CORPUS, TARGETS  # noqa: E402 - from beside the corpus, for `make fuzz` too


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_the_corpus_crashes_or_is_estimated_below_its_cost(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())

    assert len(inputs) >= 10
    for path in inputs:
        try:
            TARGETS[name](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path}: {error!r}") from error
