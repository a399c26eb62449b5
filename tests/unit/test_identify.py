"""In which order agents are known, and what a key of the ledger costs and admits."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from service_rules import KEY, Desk, agent, budget, call, until

from extauthz.identity import (
    CertificateRule,
    KeyRule,
    NamePattern,
    StaticRule,
    TokenRule,
    hash_key,
    is_made_key,
    make_key,
    verified_name,
)
from extauthz.ledger import Change, Key, Override
from extauthz.policies import Scope, Template
from extauthz.reasons import Decision, Reason
from extauthz.service.verdict import Verdict
from extauthz.store.base import BooksClosedError, StoreUnavailableError

MADE = make_key(b"m" * 32)
TOKEN = TokenRule("https://issuer", ("sub",), (NamePattern("sa:*:*", "{2}", make=True),))
CERTIFICATE = CertificateRule((NamePattern("spiffe://test/*", "{1}"),))


def desk_with(*identity: object, template: Template | None = None) -> Desk:
    desk = Desk.of(agent(budget(10)))
    rules = desk.authorizer.rules
    rules.policies = replace(rules.policies, identity=identity, template=template)  # type: ignore[arg-type]
    return desk


def keyed(key: str, **fields: object):
    return call(headers={"x-api-key": key}, **fields)


async def admit(desk: Desk, change: Change = Change.ADMIT, until_ms: int | None = None) -> None:
    at_ms = desk.clock()
    id_ = f"o{len(desk.memory._ledgers['default'].book.ids)}"
    said = Override(
        id_, "default", at_ms, change, "agent:bot", at_ms + 10**9, until_ms=until_ms,
        key_hash=hash_key(MADE),
    )  # fmt: skip
    await desk.memory.override(said)


def said(verdict: Verdict) -> tuple[Decision, Reason, int]:
    return verdict.decision, verdict.reason, verdict.status


UNKNOWN = (Decision.DENY, Reason.UNKNOWN_AGENT, 401)


async def test_a_key_of_the_ledger_is_asked_for_once_and_checked_by_every_reserve():
    desk, asked = desk_with(KeyRule()), []
    ask = desk.memory.key

    async def counted(org: str, key_hash: str) -> Key | None:
        asked.append(key_hash)
        return await ask(org, key_hash)

    desk.memory.key = counted  # type: ignore[method-assign]
    await admit(desk)
    verdicts = [await desk.authorizer.authorize(keyed(MADE)) for _ in range(3)]
    assert [verdict.decision for verdict in verdicts] == [Decision.ALLOW] * 3
    assert asked == [hash_key(MADE)]

    await admit(desk, Change.REVOKE)
    assert said(await desk.authorizer.authorize(keyed(MADE))) == UNKNOWN
    assert len(asked) == 1, "it was the reserve that refused"
    assert said(await desk.authorizer.authorize(keyed(MADE))) == UNKNOWN
    assert len(asked) == 2
    assert await desk.memory.open_reservations("default") == 3


async def test_a_free_endpoint_that_reserves_nothing_asks_the_ledger_each_time():
    desk = desk_with(KeyRule())
    await admit(desk)
    models = {"method": "GET", "path": "/v1/models", "body": b""}
    assert (await desk.authorizer.authorize(keyed(MADE, **models))).decision is Decision.ALLOW
    await admit(desk, Change.REVOKE)
    assert said(await desk.authorizer.authorize(keyed(MADE, **models))) == UNKNOWN


async def test_a_key_ends_when_it_was_said_to_and_may_be_given_another_end():
    desk = desk_with(KeyRule())
    await admit(desk, until_ms=desk.clock() + 1000)
    assert (await desk.authorizer.authorize(keyed(MADE))).decision is Decision.ALLOW
    desk.clock.now += 1000
    desk.authorizer.reserving.store._clock_ms = desk.clock  # type: ignore[attr-defined]
    assert said(await desk.authorizer.authorize(keyed(MADE))) == UNKNOWN
    await admit(desk, until_ms=desk.clock() + 1000)
    assert (await desk.authorizer.authorize(keyed(MADE))).decision is Decision.ALLOW


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), BooksClosedError("default")])
async def test_a_store_that_cannot_say_whose_a_key_is_lets_nobody_in(error: Exception):
    desk = desk_with(KeyRule(), StaticRule("bot"))

    async def away(org: str, key_hash: str) -> Key | None:
        raise error

    desk.memory.key = away  # type: ignore[method-assign]
    verdict = await desk.authorizer.authorize(keyed(MADE))
    assert said(verdict) == (Decision.ERROR, Reason.STORE_UNAVAILABLE, 503)


async def test_a_revoked_key_does_not_come_in_by_what_stands_behind_it():
    desk = desk_with(KeyRule(), StaticRule("bot"))
    assert said(await desk.authorizer.authorize(keyed(MADE))) == UNKNOWN
    for headers in ({}, {"x-api-key": "unused"}):
        assert (await desk.authorizer.authorize(call(headers=headers))).decision is Decision.ALLOW


@pytest.mark.parametrize("identity", [(KeyRule(), TOKEN, CERTIFICATE), (CERTIFICATE, TOKEN)])
async def test_the_first_way_that_finds_somebody_counts(identity: tuple[object, ...]):
    of_token = agent(replace(budget(10), name=""), name="")
    desk = desk_with(*identity, template=Template(of_token, 5))
    evidence = {
        "payloads": {"https://issuer": {"sub": "sa:ns:made"}},
        "principal": "spiffe://test/bot",
    }

    verdict = await desk.authorizer.authorize(call(headers={}, **evidence))

    assert verdict.agent is not None
    assert verdict.agent.name == ("made" if identity[0] == KeyRule() else "bot")
    if KeyRule() in identity:
        by_key = await desk.authorizer.authorize(keyed(KEY, **evidence))
        assert by_key.agent is not None
        assert by_key.agent.name == "bot"


async def test_a_flood_of_keys_that_were_never_seen_has_a_short_queue_of_its_own():
    desk, answer, asked = desk_with(KeyRule()), asyncio.Event(), []
    await admit(desk)
    assert (await desk.authorizer.authorize(keyed(MADE))).decision is Decision.ALLOW
    ask = desk.memory.key

    async def slow(org: str, key_hash: str) -> Key | None:
        asked.append(key_hash)
        if key_hash != hash_key(MADE):
            await answer.wait()
        return await ask(org, key_hash)

    desk.memory.key = slow  # type: ignore[method-assign]
    flood = [
        asyncio.create_task(desk.authorizer.authorize(keyed(make_key(number.to_bytes(32, "big")))))
        for number in range(1000)
    ]
    await until(lambda: sum(one.done() for one in flood) > 900)

    models = {"method": "GET", "path": "/v1/models"}
    assert (await desk.authorizer.authorize(keyed(MADE, **models))).decision is Decision.ALLOW
    assert len(asked) == 4 + 1
    answer.set()
    statuses = Counter([(await one).status for one in flood])
    assert statuses == {401: 32, 429: 968}


async def test_a_certificate_that_has_ended_since_its_connection_was_made_is_refused():
    desk = desk_with(CERTIFICATE, StaticRule("bot"))

    def shown(ends_at_ms: int):
        principal = "spiffe://test/bot"
        return call(headers={}, principal=principal, certificate_ends_at_ms=ends_at_ms)

    holds = await desk.authorizer.authorize(shown(desk.clock()))
    ended = await desk.authorizer.authorize(shown(desk.clock() - 1))

    assert holds.decision is Decision.ALLOW
    assert said(ended) == UNKNOWN, "and does not come in by what stands behind it"


async def test_agents_are_made_up_to_their_number_each_with_a_budget_of_its_own():
    template = Template(agent(replace(budget(2), name=""), name=""), 2)
    desk = desk_with(TOKEN, template=template)

    async def ask(name: str) -> Verdict:
        payloads = {"https://issuer": {"sub": f"sa:ns:{name}"}}
        return await desk.authorizer.authorize(call(2, headers={}, payloads=payloads))

    assert [(await ask(name)).decision for name in "abab"] == [
        Decision.ALLOW,
        Decision.ALLOW,
        Decision.DENY,
        Decision.DENY,
    ]
    assert said(await ask("c")) == UNKNOWN
    rules = desk.authorizer.rules
    assert rules.policies.made == ("a", "b")
    names = [one.name for one in rules.policies.budgets if one.scope is Scope.AGENT]
    assert names == ["bot", "a", "b"]
    before = replace(rules.policies, agents={}, budgets=(), made=())
    rules.take_over(before, rules.prices)
    assert set(rules.policies.agents) == {"a", "b"}


@pytest.mark.parametrize(
    "sub", ["sa:ns:na me", "sa:ns:", "sa:ns:a:b", "xsa:ns:a", "sa:ns:a\n", "sa:ns:-a", 7, None]
)
async def test_a_claim_that_makes_no_name_makes_no_agent(sub: object):
    template = Template(agent(replace(budget(2), name=""), name=""), 2)
    desk = desk_with(TOKEN, template=template)
    payloads = {"https://issuer": {"sub": sub}, "https://else": {"sub": "sa:ns:a"}}
    assert said(await desk.authorizer.authorize(call(headers={}, payloads=payloads))) == UNKNOWN
    assert desk.authorizer.rules.policies.made == ()


@pytest.mark.parametrize(
    ("pattern", "identity", "name"),
    [
        (NamePattern("*", "{1}"), "bot", "bot"),
        (NamePattern("*", "{1}"), "a/b", None),
        (NamePattern("*", "{1}"), "a:b", None),
        (NamePattern("a.b*", "x"), "aXbc", None),
        (NamePattern("spiffe://t/ns/*/sa/*", "{2}.{1}"), "spiffe://t/ns/one/sa/two", "two.one"),
        (NamePattern("spiffe://t/ns/*/sa/*", "{2}"), "spiffe://t/ns/one/sa/x/sa/two", None),
        (NamePattern("root", "bot"), "root", "bot"),
    ],
)
def test_a_star_stands_for_one_part_of_an_identity(
    pattern: NamePattern, identity: str, name: str | None
):
    found = verified_name([pattern], identity)
    assert found == (None if name is None else (name, False))


@pytest.mark.parametrize("subject", ["", "CN=spiffe://test/bot", "CN=bot,O=x", "a b"])
def test_the_subject_of_a_certificate_without_a_name_is_none(subject: str):
    assert CERTIFICATE.identity_in(subject) is None


def test_a_claim_is_found_by_its_path():
    rule = TokenRule("i", ("kubernetes.io", "serviceaccount", "name"), ())
    payload = {"kubernetes.io": {"serviceaccount": {"name": "bot"}}}
    assert rule.identity_in({"i": payload}) == "bot"
    assert rule.identity_in({"i": {"kubernetes.io": "bot"}}) is None
    assert rule.identity_in({"else": payload}) is None


@pytest.mark.parametrize("cut", [MADE[:-1], MADE[1:], MADE.upper(), f"{MADE} ", "xa_x", ""])
def test_a_key_with_a_typing_error_is_no_made_key(cut: str):
    assert is_made_key(MADE)
    assert not is_made_key(cut)
