"""The command line. Each command reads the config, says every error at once, and runs one thing."""

import argparse
import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from extauthz import __version__
from extauthz.commands import (
    audit,
    authority,
    budget,
    key,
    ledger,
    lockdown,
    pause,
    price,
    reconcile,
    spend,
)
from extauthz.config import PLACEHOLDER_KEY_HASH, Config, ConfigError, example_text, load
from extauthz.errors import OperatorError
from extauthz.identity import hash_key, make_key
from extauthz.servicers.observing import JsonFormatter

_DEFAULT_CONFIG = Path("extauthz.yaml")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 0, or with 1 and a clear text, or with 2 for a wrong usage."""
    options = _parser().parse_args(arguments)
    if any(isinstance(word, str) and not _is_text(word) for word in vars(options).values()):
        # (it would stand in the books for good, and no export could write it)
        print("extauthz: an argument is no UTF-8: write it in UTF-8", file=sys.stderr)
        sys.exit(2)
    try:
        options.run(options)
    except OperatorError as error:
        print(f"extauthz: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _is_text(word: str) -> bool:
    """Whether all bytes of an argument were UTF-8: Python shows others as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in word)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="extauthz", description="Spend limits for AI agents, enforced in the network by Envoy."
    )
    parser.add_argument("--version", action="version", version=f"extauthz {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="write a config and make a first virtual key")
    init.add_argument("-c", "--config", type=Path, default=_DEFAULT_CONFIG)
    init.set_defaults(run=_init)

    up = commands.add_parser("up", help="run the whole sidecar: store, service and Envoy")
    _with_config(up)
    up.set_defaults(run=_up)

    serve = commands.add_parser("serve", help="run the service only (Check, access-log sink)")
    _with_config(serve)
    serve.set_defaults(run=_serve)

    config = commands.add_parser("config", help="check the config, or print Envoy's bootstrap")
    kinds = config.add_subparsers(required=True, metavar="COMMAND")
    check = kinds.add_parser("check", help="say every error in the config, each with its path")
    _with_config(check)
    check.set_defaults(run=_check)
    envoy = kinds.add_parser("envoy", help="print the Envoy bootstrap for this config")
    _with_config(envoy)
    envoy.set_defaults(run=_envoy)

    key.add_to(commands)
    authority.add_to(commands)
    lockdown.add_to(commands)
    budget.add_to(commands)
    pause.add_to(commands)
    reconcile.add_to(commands)
    ledger.add_to(commands)
    audit.add_to(commands)
    spend.add_to(commands)
    price.add_to(commands)

    demo = commands.add_parser("demo", help="watch a runaway agent being stopped at its limit")
    demo.set_defaults(run=_demo)
    return parser


def _with_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", type=Path, default=_DEFAULT_CONFIG, metavar="FILE")


def _init(options: argparse.Namespace) -> None:
    path: Path = options.config
    first_key = make_key(secrets.token_bytes(32))
    text = example_text().replace(PLACEHOLDER_KEY_HASH, hash_key(first_key))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(str(path), ["is there already and is not overwritten"]) from None
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be written ({error.strerror})"]) from error
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    print(f"""Wrote {path}, with one agent 'my-agent' and a limit of 25.00 USD a day.

Its virtual key, shown this once (the file holds only its SHA-256):

    {first_key}

Next:
  export OPENAI_API_KEY=... ANTHROPIC_API_KEY=...    # or remove a provider from {path}
  extauthz up -c {path}
  OpenAI SDK:     base_url="http://127.0.0.1:10000/openai/v1"   api_key="{first_key[:7]}..."
  Anthropic SDK:  base_url="http://127.0.0.1:10000/anthropic"   api_key="{first_key[:7]}..."
""")


def _up(options: argparse.Namespace) -> None:
    from extauthz.server.up import up  # noqa: PLC0415

    config = load(options.config)
    _log_to_stderr()
    _run(up(config, options.config, _announce))


def _serve(options: argparse.Namespace) -> None:
    from extauthz.server.serve import serve  # noqa: PLC0415

    config = load(options.config)
    _log_to_stderr()
    _run(serve(config, options.config))


def _check(options: argparse.Namespace) -> None:
    from extauthz.server.envoy import envoy_settings  # noqa: PLC0415

    config = load(options.config)
    envoy_settings(config)
    agents, budgets = len(config.agents), sum(len(a.budgets) for a in config.agents.values())
    print(f"{options.config}: good ({agents} agents with {budgets} budgets of their own)")


def _envoy(options: argparse.Namespace) -> None:
    from extauthz.bootstrap import render  # noqa: PLC0415
    from extauthz.server.envoy import envoy_settings  # noqa: PLC0415

    sys.stdout.write(render(envoy_settings(load(options.config))))


def _demo(_options: argparse.Namespace) -> None:
    from extauthz.demo import run_demo  # noqa: PLC0415

    sys.exit(run_demo())


def _announce(config: Config) -> None:
    egress = config.listen.egress
    scheme = "https" if any(way.mtls for way in config.identity) else "http"
    lines = ["extauthz is up. Point each SDK's base_url at it, with the agent's virtual key:"]
    for name, provider in config.providers.items():
        suffix = "/v1" if provider.api == "openai" else ""
        lines.append(f"  {name:<12} {scheme}://{egress}/{name}{suffix}")
    for host, _ in config.intercepted_hosts():
        assert config.intercept is not None
        lines.append(f"  intercepted  {host} at {config.intercept.listen}")
    lines.append(f"  metrics      http://{config.listen.metrics}/metrics")
    if config.store.url is None:
        lines.append("The ledger is embedded: limits hold for this host only (see store.url).")
    print("\n".join(lines), flush=True)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # What no line shows is not looked up (docs.python.org, logging HOWTO, "Optimization").
    logging._srcfile = None  # noqa: SLF001
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
