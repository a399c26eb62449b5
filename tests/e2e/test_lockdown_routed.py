"""`extauthz lockdown` for who is routed through this host: agents in a namespace behind it.

The host has the sidecar, and leads on to a third one, which is the internet. Nothing there is a
process of the host's own users, so rules can go by the interface or by the source address only.
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
    ESCAPES,
    HOST,
    INTERNET,
    INTERNET6,
    OTHER_RESOLVER,
    SDK,
    TLS,
    TRICKS,
    Internet,
    as_agent,
    cable,
    cannot_lock_down,
    inside,
    load,
    made_namespace,
    made_namespaces,
    printed_rules,
    readable_ca,
    run,
    started_internet,
    unload,
    write_names,
)
from sidecar import Sidecar, agent, key_of, running_sidecar

pytestmark = pytest.mark.skipif(bool(cannot_lock_down()), reason=cannot_lock_down() or "it can")
AGENTS, GATEWAY = "10.231.8.2", "10.231.8.1"
AGENTS6, GATEWAY6 = "fd23:8::2", "fd23:8::1"


@dataclass
class World:
    agents: str
    host: str
    seen: Internet
    sidecar: Sidecar
    ca: Path

    def as_agent(self, program: str, *words: str, **environment: str) -> Any:
        return as_agent(self.agents, self.ca, program, *words, **environment)

    @property
    def interface(self) -> str:
        """Of the host, by which agents come in."""
        return f"{self.agents}0"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        host, internet = made_namespaces(stack)
        agents = made_namespace(stack, "a")
        cable(
            (agents, (f"{AGENTS}/24", f"{AGENTS6}/64")),
            (host, (f"{GATEWAY}/24", f"{GATEWAY6}/64")),
        )
        run("ip", "-n", agents, "route", "add", "default", "via", GATEWAY)
        run("ip", "-n", agents, "-6", "route", "add", "default", "via", GATEWAY6)
        run("ip", "-n", internet, "route", "add", "10.231.8.0/24", "via", HOST)
        run("ip", "-n", internet, "-6", "route", "add", "fd23:8::/64", "via", "fd23:7::1")
        write_names(stack, agents)
        forward = "echo 1 > {}/ipv4/ip_forward; echo 1 > {}/ipv6/conf/all/forwarding"
        run("ip", "netns", "exec", host, "sh", "-c", forward.replace("{}", "/proc/sys/net"))
        seen = started_internet(stack, internet)
        stack.enter_context(inside(host))
        sidecar = stack.enter_context(
            running_sidecar(
                start=False,
                agents=agent("bot", "10.00"),
                intercept={"listen": "0.0.0.0:10443", "hosts": {
                    "openai": ["api.openai.com"], "anthropic": ["api.anthropic.com"]}},
                listen={"egress": "0.0.0.0:10000", "metrics": "0.0.0.0:9464"},
            )
        )  # fmt: skip
        sidecar.config["listen"] |= {"metrics": "0.0.0.0:9464"}
        sidecar.write_config()
        run(sys.executable, "-m", "extauthz", "ca", "init", "-c", str(sidecar.config_path))
        sidecar.start()
        yield World(agents, host, seen, sidecar, readable_ca(stack, sidecar))


HERE = {
    "metrics": ("tcp", GATEWAY, 9464),
    "metrics by another address": ("tcp", HOST, 9464),
}
OPEN = {
    "egress": ("tcp", GATEWAY, 10_000),
    "the resolver": ("udp", INTERNET, 53),
    "the resolver over tcp": ("tcp", INTERNET, 53),
}


@pytest.fixture(
    params=[
        ("nftables", "interface"),
        ("nftables", "source"),
        pytest.param(("iptables", "interface"), marks=pytest.mark.full),
        pytest.param(("iptables", "source"), marks=pytest.mark.full),
    ],
    ids="-".join,
)
def locked(request: pytest.FixtureRequest, world: World) -> Iterator[World]:
    rules_format, kind = request.param
    if rules_format == "iptables" and shutil.which("ip6tables-restore") is None:
        pytest.skip("needs iptables")
    who = {
        "interface": ("--interface", world.interface),
        "source": ("--source", "10.231.8.0/24", "--source", "fd23:8::/64"),
    }[kind]
    open_before = world.as_agent(ESCAPES, json.dumps(TRICKS | HERE | OPEN))
    assert set(open_before.values()) == {"out"}, "the tricks must work where nothing forbids"
    rules = printed_rules(world.sidecar, "--resolver", INTERNET, "--format", rules_format, *who)
    for _ in range(2):  # the second time changes nothing
        load(rules, rules_format)
    world.seen.arrived.clear()
    try:
        yield world
    finally:
        unload(rules_format)


def test_who_is_routed_through_this_host_has_no_other_way_out(locked: World) -> None:
    before, billed = locked.sidecar.balance("bot")[0], locked.sidecar.sandbox.total_nanousd()

    results = locked.as_agent(ESCAPES, json.dumps(TRICKS | HERE))
    tried = [(INTERNET, None), (INTERNET, "example.com"), (OTHER_RESOLVER, "cloudflare-dns.com"),
             (INTERNET, "api.openai.com"), ("192.0.2.9", "api.openai.com")]  # fmt: skip
    answers = locked.as_agent(TLS, json.dumps(tried))
    url, status, headers = locked.as_agent(SDK, OPENAI_API_KEY=key_of("bot"))

    assert [name for name, result in results.items() if result == "out"] == []
    assert all("Error" in answer or "Reset" in answer for answer in answers[:3]), answers
    assert [answer[:5] for answer in answers[3:]] == ["TLSv1"] * 2, "by Envoy, for its names"
    assert (url, status) == ("https://api.openai.com/v1/", 200)
    assert headers["x-budget-decision-id"]
    assert locked.seen.arrived == []
    locked.sidecar.until_settled()
    spent = locked.sidecar.balance("bot")[0] - before
    assert spent == locked.sidecar.sandbox.total_nanousd() - billed > 0
    # What the rules leave open is open, and others are not their business.
    assert set(locked.as_agent(ESCAPES, json.dumps(OPEN)).values()) == {"out"}
    own = run(sys.executable, "-c", ESCAPES, json.dumps({
        "the host's own": ("tcp", INTERNET, 80), "by IPv6": ("tcp", INTERNET6, 443)}))  # fmt: skip
    assert set(json.loads(own.stdout).values()) == {"out"}
