"""Large bodies that are on their way: bounded for each agent and for all, and never for good."""

import pytest
from service_rules import Desk, agent, budget, call

from extauthz.reasons import Decision, Reason
from extauthz.service.denied import Denied
from extauthz.service.uploads import AGENT_BYTES_MAX, ALL_BYTES_MAX, Uploads

MIB = 2**20
BOT = agent(budget(10))
ONE_AT_A_TIME = agent(budget(10), max_in_flight=1)


def taken(uploads: Uploads, *lengths: int | str, who=BOT, at_ms: int = 0) -> int:
    """How many of them find a place, each under an id of its own."""
    places = 0
    for number, length in enumerate(lengths):
        try:
            uploads.begin(f"{who.name}-{at_ms}-{number}", who, str(length), at_ms)
        except Denied as denied:
            assert (denied.reason, denied.status) == (Reason.TOO_MANY_IN_FLIGHT, 429)
        else:
            places += 1
    return places


@pytest.mark.parametrize(
    ("who", "lengths", "places"),
    [
        (BOT, [31_000_000] * 24, 2),
        (ONE_AT_A_TIME, [31_000_000] * 24, 1),
        (BOT, [""] * 24, 2),
        (BOT, ["+5", "-1", "1e9", "99999999999999"], 2),
        (BOT, [100_000] * 250, 250),
        (ONE_AT_A_TIME, [100_000] * 24, 24),
    ],
)
def test_an_agent_has_so_many_bytes_on_their_way(who, lengths, places):
    assert taken(Uploads(), *lengths, who=who) == places


def test_all_agents_together_have_so_many_bytes_on_their_way():
    uploads = Uploads()
    crowd = [agent(budget(1), name=f"bot-{number}") for number in range(20)]
    places = sum(taken(uploads, *[32 * MIB] * 2, who=one) for one in crowd)
    assert places == ALL_BYTES_MAX // (32 * MIB)
    assert uploads.total_bytes == ALL_BYTES_MAX


def test_a_place_is_given_back_once_and_forgotten_when_nobody_does():
    uploads = Uploads()
    assert taken(uploads, AGENT_BYTES_MAX, 1) == 1
    uploads.end("bot-0-0")
    uploads.end("bot-0-0")
    uploads.end("of a call without a large body")
    assert uploads.total_bytes == 0

    assert taken(uploads, AGENT_BYTES_MAX) == 1
    assert taken(uploads, 1, at_ms=129_000) == 0
    assert taken(uploads, 1, at_ms=131_000) == 1
    assert uploads.total_bytes == 1


async def test_a_place_is_had_from_the_headers_until_the_call_is_decided():
    desk = Desk.of(BOT)
    large = {"authorization": "Bearer xa_key", "content-length": "33000000"}

    async def announced(id_: str):
        return await desk.authorizer.refuse_by_headers(
            call(headers=large, request_id=id_), 32 * MIB
        )

    assert [await announced("a"), await announced("b")] == [None, None]
    refused = await announced("c")
    assert refused is not None
    assert (refused.decision, refused.reason) == (Decision.DENY, Reason.TOO_MANY_IN_FLIGHT)

    await desk.authorizer.authorize(call(headers=large, request_id="a"))

    assert await announced("c") is None
