"""Tools that Anthropic runs itself, of which two are bounded: web search and web fetch.

From https://platform.claude.com/docs/en/agents-and-tools/tool-use/server-tools and
https://platform.claude.com/docs/en/agents-and-tools/tool-use/web-search-tool: the model is sampled
again after each round of tools, by default at most 10 times a call, and each time it reads all that
has come together. A search costs 10 USD a thousand beside the tokens, `max_uses` bounds how many
there are, and an answer tells `server_tool_use.web_search_requests`. A fetch costs its tokens only.
Not these: versions that filter by code, which calls the tools as often as it likes; code execution,
which is billed by the hour; MCP servers and the advisor, which bill elsewhere.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from extauthz.providers.base import RequestError
from extauthz.providers.strict_json import read_count
from extauthz.reasons import Reason

ROUNDS_MAX = 10
RESULT_BLOCKS = ("server_tool_use", "web_search_tool_result", "web_fetch_tool_result")
"""What an earlier answer has of such tools, sent again; how long it is, its bytes do not say."""

_SEARCH, _FETCH = "web_search_20250305", "web_fetch_20250910"
_KNOWN = {
    _SEARCH: frozenset((
        "allowed_domains", "blocked_domains", "cache_control", "max_uses", "name", "type",
        "user_location",
    )),
    _FETCH: frozenset((
        "allowed_domains", "blocked_domains", "cache_control", "citations", "max_content_tokens",
        "max_uses", "name", "type",
    )),
}  # fmt: skip
_USES_MAX = 100


class ServerTools(NamedTuple):
    """What a request's server tools can add: rounds of sampling, and searches."""

    rounds: int
    searches: int


def is_server_tool(tool: Any) -> bool:
    """Whether a tool is one of those that run at Anthropic and are bounded."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind in _KNOWN


def read_server_tools(tools: Sequence[Any]) -> ServerTools:
    """How often a request's server tools can have the model sampled, and search.

    Raises:
        RequestError: one without `max_uses`, or with a setting that is not known.
    """
    rounds, searches = 1, 0
    for tool in filter(is_server_tool, tools):
        known = _KNOWN[tool["type"]]
        uses = read_count(tool, "max_uses", _USES_MAX)
        if uses is None or not known.issuperset(k for k, v in tool.items() if v is not None):
            raise RequestError(
                Reason.UNMETERED_ENDPOINT,
                f"a tool that runs at the provider is bounded by its 'max_uses' (at most "
                f"{_USES_MAX}): name one, and no setting but {', '.join(sorted(known))}",
            )
        rounds = ROUNDS_MAX
        searches += uses if tool["type"] == _SEARCH else 0
    return ServerTools(rounds, searches)
