"""`extauthz ca init`: the local CA of transparent interception."""

import argparse
from pathlib import Path

from extauthz.config import load

_SET_IN_AGENTS = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE")


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`ca init`."""
    authority = commands.add_parser("ca", help="the local CA of transparent interception")
    kinds = authority.add_subparsers(required=True, metavar="COMMAND")
    init = kinds.add_parser("init", help="make the CA that agents trust for the providers' hosts")
    init.add_argument("-c", "--config", type=Path, default=Path("extauthz.yaml"), metavar="FILE")
    init.set_defaults(run=_init)


def _init(options: argparse.Namespace) -> None:
    from extauthz.server.interception import authority_of  # noqa: PLC0415 - 0.1 s of imports

    config = load(options.config)
    authority = authority_of(config)
    hosts = [host for host, _ in config.intercepted_hosts()]
    authority.create(hosts)
    print(f"""Wrote {authority.certificate} and {authority.key} (which stays here, with mode 0600).

It can sign for these names only: {", ".join(hosts)}

Next:
  copy {authority.certificate} to where agents can read it, and set for them
    {"=... ".join(_SET_IN_AGENTS)}=...
  extauthz lockdown -c {options.config} --help""")
