"""The firewall rules of `extauthz lockdown`, as texts: for nftables, and for iptables.

Who is locked down has two ways out: the egress and the intercept listener on this host, and a
resolver. TCP to port 443, wherever to, arrives at the intercept listener. All else is rejected, so
that clients fail at once (QUIC falls back to TCP); so is IPv6 altogether, also to port 443.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

TABLE = "extauthz_lockdown"
_CHAIN, _NAT_CHAIN = "EXTAUTHZ", "EXTAUTHZ_NAT"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and port that stays open."""

    address: IpAddress
    port: int


@dataclass(frozen=True, slots=True)
class Lockdown:
    """Who is locked down, and what is left to them.

    One of `uids`, `cgroup` and `sources` says who: processes of this host, or whoever is routed
    through it from other network namespaces, containers or machines.
    """

    envoy_uid: int
    intercept: Endpoint
    egress: Endpoint
    resolvers: tuple[IpAddress, ...] = ()
    allowed: tuple[Endpoint, ...] = ()
    uids: tuple[int, ...] = ()
    cgroup: str | None = None
    sources: tuple[Network, ...] = ()
    interfaces: tuple[str, ...] = ()

    @property
    def are_local(self) -> bool:
        """Whether the agents are processes of this host."""
        return not self.sources and not self.interfaces


def nftables(rules: Lockdown) -> str:
    """For `nft -f`; loading it again replaces the rules in one step."""
    body = _nft_local(rules) if rules.are_local else _nft_routed(rules)
    return "\n".join(
        [
            f"# {_summary(rules)}",
            f"table inet {TABLE}",  # so that there is one to delete
            f"delete table inet {TABLE}",
            f"table inet {TABLE} {{",
            *(f"  {line}" if line else "" for line in body),
            "}",
            "",
        ]
    )


def _summary(rules: Lockdown) -> str:
    return (
        f"Made by extauthz lockdown. Open: {rules.egress.address}:{rules.egress.port}, "
        f"{rules.intercept.address}:{rules.intercept.port} (which gets all TCP to port 443)"
    )


def _nft_local(rules: Lockdown) -> Iterator[str]:
    agents = list(_nft_agents(rules))
    to_listener = f"redirect to :{rules.intercept.port}"
    yield "chain to_intercept {"
    yield "  type nat hook output priority -100; policy accept;"
    yield f"  meta skuid {rules.envoy_uid} accept"
    for who in agents:
        yield f"  {who} meta nfproto ipv4 tcp dport 443 {to_listener}"
    yield "}"
    yield "chain from_here {"
    yield "  type filter hook output priority filter; policy accept;"
    yield f"  meta skuid {rules.envoy_uid} accept"
    for who in agents:
        yield f"  {who} jump agents"
    yield "}"
    yield from _nft_agents_chain(rules)


def _nft_agents(rules: Lockdown) -> Iterator[str]:
    if rules.uids:
        yield f"meta skuid {{ {', '.join(map(str, rules.uids))} }}"
    if rules.cgroup is not None:
        depth = rules.cgroup.strip("/").count("/") + 1
        yield f'socket cgroupv2 level {depth} "{rules.cgroup.strip("/")}"'


def _nft_routed(rules: Lockdown) -> Iterator[str]:
    agents = list(_nft_sources(rules))
    yield "chain to_intercept {"
    yield "  type nat hook prerouting priority -100; policy accept;"
    for who in agents:
        if not who.startswith("ip6"):
            yield f"  {who} meta nfproto ipv4 tcp dport 443 redirect to :{rules.intercept.port}"
    yield "}"
    for hook in ("input", "forward"):
        yield f"chain from_{hook} {{"
        yield f"  type filter hook {hook} priority filter; policy accept;"
        for who in agents:
            yield f"  {who} jump agents"
        yield "}"
    yield from _nft_agents_chain(rules)


def _nft_sources(rules: Lockdown) -> Iterator[str]:
    if rules.interfaces:
        names = ", ".join(f'"{name}"' for name in rules.interfaces)
        yield f"iifname {{ {names} }}"
    for version, word in ((4, "ip"), (6, "ip6")):
        networks = [str(one) for one in rules.sources if one.version == version]
        if networks:
            yield f"{word} saddr {{ {', '.join(networks)} }}"


def _nft_agents_chain(rules: Lockdown) -> Iterator[str]:
    yield "chain agents {"
    for one in (rules.intercept, rules.egress):
        here = _nft_to(one.address) if one.address.is_loopback else "fib daddr type local"
        yield f"  {here} tcp dport {one.port} accept"
    for resolver in rules.resolvers:
        yield f"  {_nft_to(resolver)} meta l4proto {{ tcp, udp }} th dport 53 accept"
    for one in rules.allowed:
        yield f"  {_nft_to(one.address)} tcp dport {one.port} accept"
    if any(one.version == 6 for one in rules.resolvers + tuple(e.address for e in rules.allowed)):
        yield "  icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
    yield "  counter reject with icmpx type admin-prohibited"
    yield "}"


def _nft_to(address: IpAddress) -> str:
    return f"{'ip' if address.version == 4 else 'ip6'} daddr {address}"


def iptables(rules: Lockdown) -> str:
    """A shell script; running it again replaces what is open, and adds who is locked down."""
    lines = ["#!/bin/sh", f"# {_summary(rules)}", "set -e"]
    for version, command in ((4, "iptables -w"), (6, "ip6tables -w")):
        lines += _ipt(rules, version, command)
    return "\n".join([*lines, ""])


def _ipt(rules: Lockdown, version: int, command: str) -> Iterator[str]:
    hooks = ("OUTPUT",) if rules.are_local else ("INPUT", "FORWARD")
    yield from _ipt_chain(command, "filter", _CHAIN, _ipt_filter(rules, version))
    for hook in hooks:
        yield from _ipt_attached(rules, version, f"{command} -t filter", hook, _CHAIN)
    if version == 4:
        redirect = f"-p tcp --dport 443 -j REDIRECT --to-ports {rules.intercept.port}"
        yield from _ipt_chain(command, "nat", _NAT_CHAIN, [*_ipt_envoy(rules), redirect])
        hook = "OUTPUT" if rules.are_local else "PREROUTING"
        yield from _ipt_attached(rules, version, f"{command} -t nat", hook, _NAT_CHAIN)


def _ipt_chain(command: str, table: str, chain: str, rules: Iterable[str]) -> Iterator[str]:
    """Fill a chain in one step: it is never half there."""
    program, *options = command.split()
    yield f"{program}-restore {' '.join(options)} --noflush <<'RULES'"
    yield f"*{table}"
    yield f":{chain} - [0:0]"
    yield from (f"-A {chain} {rule}" for rule in rules)
    yield "COMMIT"
    yield "RULES"


def _ipt_envoy(rules: Lockdown) -> Iterator[str]:
    if rules.are_local:
        yield f"-m owner --uid-owner {rules.envoy_uid} -j RETURN"


def _ipt_filter(rules: Lockdown, version: int) -> Iterator[str]:
    yield from _ipt_envoy(rules)
    for one in (rules.intercept, rules.egress) if version == 4 else ():
        loopback = one.address.is_loopback
        here = f"-d {one.address}" if loopback else "-m addrtype --dst-type LOCAL"
        yield f"{here} -p tcp --dport {one.port} -j ACCEPT"
    for resolver in rules.resolvers:
        if resolver.version == version:
            yield f"-d {resolver} -p tcp --dport 53 -j ACCEPT"
            yield f"-d {resolver} -p udp --dport 53 -j ACCEPT"
    for one in rules.allowed:
        if one.address.version == version:
            yield f"-d {one.address} -p tcp --dport {one.port} -j ACCEPT"
    refusal = "icmp-admin-prohibited" if version == 4 else "icmp6-adm-prohibited"
    yield f"-j REJECT --reject-with {refusal}"


def _ipt_attached(
    rules: Lockdown, version: int, command: str, hook: str, chain: str
) -> Iterator[str]:
    """Send the agents' packets into a chain, before every other rule, and once only."""
    for who in _ipt_agents(rules, version):
        rule = f"{who} -j {chain}"
        yield f"{command} -C {hook} {rule} 2>/dev/null || {command} -I {hook} 1 {rule}"


def _ipt_agents(rules: Lockdown, version: int) -> Iterator[str]:
    for uid in rules.uids:
        yield f"-m owner --uid-owner {uid}"
    if rules.cgroup is not None:
        yield f'-m cgroup --path "{rules.cgroup.strip("/")}"'
    for name in rules.interfaces:
        yield f"-i {name}"
    for network in rules.sources:
        if network.version == version:
            yield f"-s {network}"
