"""Each call ends once: a second ending is seen however far it is from the first, up to a number."""

import pytest

from extauthz.ledger import Endings, Row, RowOutcome


def a_row(id_: str, outcome: RowOutcome = RowOutcome.SETTLED) -> Row:
    return Row(1, 0, outcome, id_)


@pytest.mark.parametrize(
    ("first", "then", "is_second"),
    [
        (RowOutcome.SETTLED, RowOutcome.RECOVERED, True),
        (RowOutcome.RELEASED, RowOutcome.SETTLED, True),
        (RowOutcome.EXPIRED_UNCONFIRMED, RowOutcome.RECOVERED, True),
        (RowOutcome.EXPIRED_UNCONFIRMED, RowOutcome.LATE, False),
        (RowOutcome.RELEASED, RowOutcome.ANOMALY, False),
        (RowOutcome.SETTLED, RowOutcome.CONFLICT, False),
        (RowOutcome.DEAD_LETTER, RowOutcome.SETTLED, False),
    ],
)
def test_a_correction_is_no_second_ending(
    first: RowOutcome, then: RowOutcome, is_second: bool
) -> None:
    endings = Endings()

    assert not endings.is_second(a_row("a", first))
    assert not endings.is_second(a_row("b", first))
    assert endings.is_second(a_row("a", then)) is is_second


def test_the_last_endings_are_known_and_older_ones_forgotten() -> None:
    endings = Endings(endings_max=100)

    for n in range(1000):
        assert not endings.is_second(a_row(f"call-{n}"))

    assert all(endings.is_second(a_row(f"call-{n}")) for n in range(900, 1000))
    assert not any(endings.is_second(a_row(f"call-{n}")) for n in range(100))
