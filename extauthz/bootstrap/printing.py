"""From Envoy's message to YAML that a person reads: snake_case, block style, notes at the parts."""

import sys
from typing import Any

import betterproto2
import yaml

NOTES: dict[str, str] = {
    "- name: egress": (
        "Agents connect here. Every call passes Check before it can reach a provider."
    ),
    "- name: intercept": (
        "Calls to the providers' own host names, which the firewall leads here. Other names match "
        "no chain and are closed."
    ),
    "- name: access_log_hop": (
        "The access logger drops what it cannot send at once. Behind this hop it always can: "
        "the TCP proxy waits for the sink."
    ),
    "- name: check": "The budget service: one endpoint for each of its processes.",
    "- name: access_log_sink": "The sink that settles each call in the ledger.",
    "- name: unknown_route": "Whatever is no provider's path goes nowhere.",
    "- name: envoy.filters.http.header_to_metadata": (
        "Keeps a call's id for the access logs: upstream the header that holds it is taken away."
    ),
    "- name: extauthz.identity_first": (
        "Who calls, by the headers alone: nobody fills this host's memory without a known key."
    ),
    "- name: envoy.filters.http.ext_authz": (
        "Fails closed: failure_mode_allow and allow_partial_message are left at false."
    ),
    "- name: envoy.filters.http.lua": (
        "Applies the edits that Check decided on; reads usage out of answers as they stream."
    ),
    "- name: envoy.filters.http.decompressor.gzip": (
        "After Lua in this list, so before it for answers: Lua reads them plain."
    ),
    "- name: envoy.filters.http.header_mutation": (
        "Here the agent's own credential ends, and what would tell about this network."
    ),
    "local_reply_config:": (
        "What Envoy says in a provider's place. The first that matches counts; the first of all "
        "lets pass what Check or Lua wrote."
    ),
}
"""Comments by the line that they stand above."""

_HEADER = """\
# Rendered by extauthz; change extauthz.yaml and render it again, not this file.
"""


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, with lists indented below their key and text in literal blocks."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def as_yaml(message: betterproto2.Message) -> str:
    """The message as YAML; the order is that of Envoy's own declarations, so it never varies."""
    return _HEADER + _with_notes(dump(message.to_dict(casing=betterproto2.Casing.SNAKE)))


def dump(tree: dict[str, Any]) -> str:
    """YAML in block style, of which no line is folded."""
    return yaml.dump(
        tree,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        width=sys.maxsize,
        allow_unicode=True,
    )


def _with_notes(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        body = line.lstrip(" ")
        if note := NOTES.get(body):
            lines.append(f"{' ' * (len(line) - len(body))}# {note}")
        lines.append(line)
    return "\n".join(lines) + "\n"
