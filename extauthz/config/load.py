"""Reading `extauthz.yaml`: every error at once, each with its path and what to write instead."""

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from extauthz.config.identity import identity_contradictions
from extauthz.config.model import Config
from extauthz.errors import OperatorError
from extauthz.policies import Scope


class ConfigError(OperatorError):
    """The config cannot be used. `errors` are lines such as `agents.bot.budgets[0].limit: …`."""

    def __init__(self, source: str, errors: list[str]) -> None:
        super().__init__(source, errors)
        self.source = source
        self.errors = errors

    def __str__(self) -> str:
        count = len(self.errors)
        head = f"{self.source}: {count} error{'s' if count > 1 else ''}"
        return "\n".join([head, *(f"  {error}" for error in self.errors)])


class _Loader(yaml.SafeLoader):
    """YAML in which 0.1 is a Decimal and a repeated key is an error.

    Plain words mean what they do in YAML 1.2: 12:30, 2026-01-01 and yes are strings, and 010 is
    ten, not eight.
    """


_Loader.yaml_implicit_resolvers = {}  # those of YAML 1.1 are not inherited
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )

_NUMBER = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?")


_OWN_CHECK = re.compile(r"([a-z_]+): ")


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    text = str(loader.construct_scalar(node))
    return Decimal(text) if _NUMBER.fullmatch(text) else text


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if isinstance(key, str) and key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        seen.add(key if isinstance(key, str) else str(key))
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load(path: Path) -> Config:
    """Read a config file. Relative paths in it are relative to the file's folder.

    Raises:
        ConfigError: naming every mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            str(path), [f"cannot be read ({error.strerror}): 'extauthz init' writes one"]
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            str(path), [f"byte {error.start + 1} is not UTF-8: save the file as UTF-8"]
        ) from error
    return parse(text, source=str(path), base=path.resolve().parent)


def parse(text: str, *, source: str, base: Path) -> Config:
    """Read a config text; `base` is the folder that relative paths start from."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader, see above
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(source, [f"not valid YAML: {_yaml_error(error)}"]) from error
    except RecursionError as error:
        raise ConfigError(source, ["not valid YAML: it is nested too deeply"]) from error
    if not isinstance(data, dict):
        raise ConfigError(source, ["the file must be a mapping: 'extauthz init' writes one"])
    try:
        config = Config.model_validate(data, context={"base": base})
    except ValidationError as error:
        errors = [_line(detail) for detail in _causes(error)]
        errors += _contradictions_beside(data, error)
        raise ConfigError(source, errors) from error
    errors = list(_contradictions(config))
    if errors:
        raise ConfigError(source, errors)
    return config


def _causes(error: ValidationError) -> Iterator[ErrorDetails]:
    """What is wrong, without the lists that are too short only because their entries are wrong."""
    details = error.errors()
    for detail in details:
        at = detail["loc"]
        within = (other["loc"] for other in details if len(other["loc"]) > len(at))
        if detail["type"] != "too_short" or all(loc[: len(at)] != at for loc in within):
            yield detail


_NAMED = {
    "agents": {},
    "teams": {},
    "orgs": {},
    "models": {},
    "providers": {"api": "openai", "upstream": "http://in.its.place"},
}
"""Blocks of named entries, each with an entry that is right for whatever name."""


def _contradictions_beside(data: dict[str, Any], error: ValidationError) -> list[str]:
    """What contradicts itself among the entries that are right: all errors are told at once.

    An entry that is wrong is replaced by an empty one of its name, so that what refers to it finds
    it; a setting that is wrong is left out.
    """
    sound = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    for detail in error.errors():
        block, *path = detail["loc"]
        entries = sound.get(str(block))
        if not path or not isinstance(entries, dict):
            sound.pop(str(block), None)
        elif block in _NAMED and path[-1] != "[key]":
            entries[path[0]] = _NAMED[str(block)]
        else:
            entries.pop(path[0], None)
    try:
        return list(_contradictions(Config.model_validate(sound)))
    except ValidationError:
        return []


def _contradictions(config: Config) -> Iterator[str]:
    """What each block alone cannot see."""
    if not config.providers:
        yield "providers: name at least one, or no call can leave"
    for name in config.orgs:
        if name != config.defaults.org:
            yield f"orgs.{name}: only the org of 'defaults.org' ({config.defaults.org}) is built"
    for index, price in enumerate(config.prices):
        if price.provider not in config.providers:
            yield f"prices[{index}].provider: there is no provider '{price.provider}'"
    listens = [config.listen.egress, config.listen.metrics, config.listen.admin]
    if config.intercept is not None:
        listens.append(config.intercept.listen)
    if len(set(listens)) < len(listens):
        yield "listen: egress, metrics, admin and intercept need addresses of their own"
    yield from _intercept_contradictions(config)
    made = config.defaults.agent
    yield from identity_contradictions(
        config.identity, frozenset(config.agents), may_make=made is not None and bool(made.budgets)
    )
    yield from _agent_contradictions(config)
    yield from _budget_contradictions(config)


def _intercept_contradictions(config: Config) -> Iterator[str]:
    if config.intercept is None:
        return
    for name in config.intercept.hosts:
        if name not in config.providers:
            yield f"intercept.hosts.{name}: there is no provider '{name}'"
    owners: dict[str, str] = {}
    for host, name in config.intercepted_hosts():
        if (owner := owners.setdefault(host, name)) != name:
            yield (
                f"intercept.hosts: {host} is a host of '{owner}' and of '{name}': name it for one "
                "of them, and let the other have others or []"
            )
    if not owners:
        yield "intercept.hosts: no provider has a host name to intercept: name some"


def _agent_contradictions(config: Config) -> Iterator[str]:
    owners: dict[str, str] = {}
    if config.defaults.agent and (team := config.defaults.agent.team) not in (None, *config.teams):
        yield f"defaults.agent.team: there is no team '{team}' under 'teams'"
    for name, agent in config.agents.items():
        hashes = [key.hash for key in agent.keys]
        for index, key in enumerate(hashes):
            owner = owners.setdefault(key, name)
            if owner != name or key in hashes[:index]:
                yield f"agents.{name}.keys[{index}]: the same key stands under agent '{owner}' too"
        if agent.team is not None and agent.team not in config.teams:
            yield f"agents.{name}.team: there is no team '{agent.team}' under 'teams'"


def _budget_contradictions(config: Config) -> Iterator[str]:
    """Two budgets of one identity would be one counter with two limits."""
    seen: dict[Any, str] = {}
    for owner, scope, name, budgets in config.budget_blocks():
        for index, budget in enumerate(budgets):
            path = f"{owner}.budgets[{index}]"
            if scope is Scope.MODEL and budget.model is not None:
                yield f"{path}.model: the models are those of '{name}' already"
            window = (budget.window, budget.length)
            implicit = (scope, name, window, budget.unit, budget.model)
            first = seen.setdefault(budget.id or implicit, path)
            if first != path:
                yield (
                    f"{path}: the same budget as {first} (by id, or by window, unit and "
                    "model): give it an 'id' of its own"
                )


_SAID_BETTER = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
}


def _line(detail: Any) -> str:
    """One error of a block with its path; a block's own checks begin with the name they mean."""
    path = ""
    for part in detail["loc"]:
        if part != "[key]":  # the path names the key already
            path += f"[{part}]" if isinstance(part, int) else f".{part}"
    message = _SAID_BETTER.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    named = _OWN_CHECK.match(message) if detail["type"] == "value_error" else None
    if named:
        path, message = f"{path}.{named[1]}", message[named.end() :]
    return f"{path.lstrip('.') or 'config'}: {message}"


def _yaml_error(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
