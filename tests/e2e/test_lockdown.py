"""`extauthz lockdown` in network namespaces: a host with agents, and an internet that notes it all.

The sidecar runs in the first as root, agents as another user, with an unmodified SDK that knows no
base URL. The second has the provider, and listens to everything that must never arrive.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from namespaces import (
    AGENT_UID,
    ESCAPES,
    INTERNET,
    OTHER_RESOLVER,
    SDK,
    TLS,
    TRICKS,
    Internet,
    as_agent,
    cannot_lock_down,
    command_of_agent,
    inside,
    last_json,
    load,
    made_namespaces,
    printed_rules,
    readable_ca,
    run,
    started_internet,
    unified_cgroups,
    unload,
)
from sidecar import Sidecar, agent, key_of, running_sidecar

pytestmark = pytest.mark.skipif(bool(cannot_lock_down()), reason=cannot_lock_down() or "it can")

UID = ("--uid", str(AGENT_UID))


@dataclass
class World:
    """Both namespaces, with the sidecar in the first."""

    host: str
    seen: Internet
    sidecar: Sidecar
    ca: Path
    rules_format: str

    def as_agent(self, program: str, *words: str, **environment: str) -> Any:
        return as_agent(self.host, self.ca, program, *words, **environment)

    def lock_down(self, *who: str, cgroups: Path | None = None) -> None:
        """Load the rules, twice: the second time changes nothing."""
        named = ("--resolver", INTERNET, "--format", self.rules_format, *who)
        rules = printed_rules(self.sidecar, *named)
        for _ in range(2):
            load(rules, self.rules_format, cgroups)


@pytest.fixture(
    scope="module", params=["nftables", pytest.param("iptables", marks=pytest.mark.full)]
)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "iptables" and shutil.which("ip6tables-restore") is None:
        pytest.skip("needs iptables")
    with ExitStack() as stack:
        host, internet = made_namespaces(stack)
        seen = started_internet(stack, internet)
        stack.enter_context(inside(host))
        sidecar = stack.enter_context(
            running_sidecar(
                start=False,
                agents=agent("bot", "10.00"),
                intercept={"listen": "127.0.0.1:10443", "hosts": {
                    "openai": ["api.openai.com"], "anthropic": ["api.anthropic.com"]}},
                listen={"egress": "127.0.0.1:10000"},
            )
        )  # fmt: skip
        sidecar.write_config()
        run(sys.executable, "-m", "extauthz", "ca", "init", "-c", str(sidecar.config_path))
        sidecar.start()
        world = World(host, seen, sidecar, readable_ca(stack, sidecar), request.param)
        open_before = world.as_agent(ESCAPES, json.dumps(TRICKS))
        assert set(open_before.values()) == {"out"}, "the tricks must work where nothing forbids"
        seen.arrived.clear()
        world.lock_down(*UID)
        yield world


def test_an_unmodified_sdk_with_its_default_url_is_budgeted(world: World) -> None:
    before, billed = world.sidecar.balance("bot")[0], world.sidecar.sandbox.total_nanousd()
    url, status, headers = world.as_agent(SDK, OPENAI_API_KEY=key_of("bot"))

    assert (url, status) == ("https://api.openai.com/v1/", 200)
    assert headers["x-budget-decision-id"]
    world.sidecar.until_settled()
    spent = world.sidecar.balance("bot")[0] - before
    assert spent == world.sidecar.sandbox.total_nanousd() - billed > 0
    assert "tcp 10.231.7.2 443" not in world.seen.arrived


def test_a_key_of_the_provider_itself_is_nobodys(world: World) -> None:
    _, status, headers = world.as_agent(SDK, OPENAI_API_KEY="sk-smuggled")

    assert (status, headers["x-budget-reason"]) == (401, "unknown_agent")


@pytest.mark.parametrize("tricks", [TRICKS], ids=["all"])
def test_nothing_else_gets_out(world: World, tricks: dict[str, tuple[str, str, int]]) -> None:
    world.seen.arrived.clear()

    results = world.as_agent(ESCAPES, json.dumps(tricks))

    assert [name for name, result in results.items() if result == "out"] == []
    assert world.seen.arrived == []


def test_port_443_of_any_address_ends_here_whatever_name_is_asked_for(world: World) -> None:
    world.seen.arrived.clear()
    tried = [(INTERNET, None), (INTERNET, "example.com"), (OTHER_RESOLVER, "cloudflare-dns.com"),
             (INTERNET, "api.openai.com"), ("192.0.2.9", "api.openai.com")]  # fmt: skip

    answers = world.as_agent(TLS, json.dumps(tried))

    assert all("Error" in answer or "Reset" in answer for answer in answers[:3]), answers
    assert [answer[:5] for answer in answers[3:]] == ["TLSv1"] * 2, (
        "by Envoy, for a provider's name"
    )
    assert world.seen.arrived == []


def test_the_services_of_this_host_are_not_the_agents(world: World) -> None:
    ports = [
        int(world.sidecar.config["listen"][name].split(":")[1]) for name in ("admin", "metrics")
    ]

    results = world.as_agent(ESCAPES, json.dumps({str(p): ("tcp", "127.0.0.1", p) for p in ports}))

    assert "out" not in results.values()


def test_the_configured_resolver_answers(world: World) -> None:
    tricks = {"udp": ("udp", INTERNET, 53), "tcp": ("tcp", INTERNET, 53)}

    assert world.as_agent(ESCAPES, json.dumps(tricks)) == {"udp": "out", "tcp": "out"}


def test_envoys_own_user_gets_out(world: World) -> None:
    done = run(sys.executable, "-c", ESCAPES, json.dumps({"https": ("tcp", INTERNET, 443)}))

    assert json.loads(done.stdout) == {"https": "out"}


def test_a_cgroup_holds_whoever_is_in_it_whatever_their_user_and_nobody_else(
    world: World,
) -> None:
    place = unified_cgroups()
    if place is None:
        pytest.skip("needs cgroups of version 2 that this user can make")
    name = f"xa-{Path('/proc/self/ns/net').stat().st_ino}-{world.rules_format}"
    inner = place / name / "inner"
    inner.mkdir(parents=True)
    try:
        unload(world.rules_format)
        world.lock_down("--cgroup", f"/{name}", cgroups=place)
        outside = world.as_agent(ESCAPES, json.dumps({"http": TRICKS["http"]}))
        world.seen.arrived.clear()
        for cgroup in (place / name, inner):
            tricks = within(world, cgroup, ESCAPES, json.dumps(TRICKS))
            assert [trick for trick, result in tricks.items() if result == "out"] == []
        as_another = within(world, inner, ESCAPES, json.dumps(TRICKS), uid=AGENT_UID + 1)
        assert "out" not in as_another.values()
        _, status, headers = within(world, inner, SDK, OPENAI_API_KEY=key_of("bot"))
        assert (status, bool(headers["x-budget-decision-id"])) == (200, True)
        assert world.seen.arrived == []
        assert outside == {"http": "out"}
    finally:
        inner.rmdir()
        inner.parent.rmdir()
        unload(world.rules_format)
        world.lock_down(*UID)


def within(
    world: World, cgroup: Path, program: str, *words: str, uid: int = AGENT_UID, **env: str
) -> Any:
    """As an agent, in a cgroup from its first step on."""
    command = command_of_agent(world.host, program, *words, uid=uid)
    enter = f'echo $$ > {cgroup}/cgroup.procs; exec "$@"'
    return last_json(["sh", "-c", enter, "sh", *command], world.ca, env)
