"""`extauthz lockdown`: prints the firewall rules that leave agents no other way out."""

import argparse
import ipaddress
import os
import re
import sys
from pathlib import Path

from extauthz.commands.desk import CommandError
from extauthz.commands.firewall import Endpoint, Lockdown, iptables, nftables
from extauthz.config import load
from extauthz.config.values import Address

_FORMATS = {"nftables": nftables, "iptables": iptables}
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_CGROUP = re.compile(r"/?[A-Za-z0-9_.@:-]+(/[A-Za-z0-9_.@:-]+)*/?")


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`lockdown`."""
    parser = commands.add_parser(
        "lockdown",
        help="print firewall rules that leave agents no way out but this one",
        description="Prints rules and changes nothing: load them with 'nft -f -', or 'sh'.",
    )
    parser.add_argument("-c", "--config", type=Path, default=Path("extauthz.yaml"), metavar="FILE")
    parser.add_argument("--format", choices=_FORMATS, default="nftables")
    who = parser.add_argument_group("who is locked down (on this host, or routed through it)")
    who.add_argument("--uid", type=_uid, action="append", default=[], help="agents run as this uid")
    who.add_argument("--cgroup", type=_cgroup, metavar="PATH", help="or in this cgroup (v2)")
    who.add_argument(
        "--interface", type=_interface, action="append", default=[], metavar="NAME",
        help="or come in by this interface, whatever address they take",
    )  # fmt: skip
    who.add_argument(
        "--source", type=ipaddress.ip_network, action="append", default=[], metavar="CIDR",
        help="or come from these addresses; IPv4 and IPv6 each for itself",
    )  # fmt: skip
    parser.add_argument(
        "--envoy-uid", type=_uid, default=os.getuid(), metavar="UID",
        help="the user that 'extauthz up' runs as: no rule is for it (default: you)",
    )  # fmt: skip
    parser.add_argument(
        "--resolver", type=ipaddress.ip_address, action="append", default=[], metavar="IP",
        help="the only name server that agents may ask (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--allow", type=_endpoint, action="append", default=[], metavar="IP:PORT",
        help="what else stays open over TCP, such as a database",
    )  # fmt: skip
    parser.set_defaults(run=_lockdown)


def _lockdown(options: argparse.Namespace) -> None:
    config = load(options.config)
    if config.intercept is None:
        raise CommandError("intercept: is missing in the config, so nothing would catch port 443")
    chosen = [bool(options.uid), bool(options.cgroup), bool(options.source or options.interface)]
    if chosen.count(True) != 1:
        raise CommandError("say who is locked down: --uid, --cgroup, or --interface and --source")
    if options.envoy_uid in options.uid:
        raise CommandError(
            f"--uid {options.envoy_uid} is Envoy's own user too: agents need another one, or "
            "nothing could tell their packets from Envoy's"
        )
    rules = Lockdown(
        options.envoy_uid,
        _listener(config.intercept.listen, "intercept.listen"),
        _listener(config.listen.egress, "listen.egress"),
        tuple(options.resolver),
        tuple(options.allow),
        tuple(options.uid),
        options.cgroup,
        tuple(options.source),
        tuple(options.interface),
    )
    address = rules.intercept.address
    if rules.are_local and not (address.is_loopback or address.is_unspecified):
        raise CommandError(
            f"intercept.listen: {config.intercept.listen}: what agents on this host send to port "
            "443 is led to 127.0.0.1, listen there"
        )
    if not rules.are_local and address.is_loopback:
        raise CommandError(
            f"intercept.listen: {config.intercept.listen} is loopback, where nothing can be led "
            "that is routed: listen on the address that agents reach this host by"
        )
    sys.stdout.write(_FORMATS[options.format](rules))


def _listener(address: Address, name: str) -> Endpoint:
    try:
        found = ipaddress.ip_address(address.host)
    except ValueError:
        raise CommandError(f"{name}: {address} is a name, firewall rules take addresses") from None
    if found.version != 4:
        raise CommandError(f"{name}: {address}: agents are led over IPv4, listen there")
    return Endpoint(found, address.port)


def _uid(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no uid: 'id -u NAME' tells it")
    return int(text)


def _interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no interface's name")
    return text


def _cgroup(text: str) -> str:
    if not _CGROUP.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no cgroup, such as /agents.slice")
    return text


def _endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r}: write IP:PORT")
    return Endpoint(ipaddress.ip_address(host.strip("[]")), int(port))
