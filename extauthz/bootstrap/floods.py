"""Calls that would be refused, one after the other: so many a second reach Check, and no more.

`floods.lua` counts, and marks the calls that are too many. The fault filter lets these wait, so
that asking again at once is of no use, and answers them in Check's place.
"""

from datetime import timedelta
from importlib import resources

from envoy_data_plane.envoy.config.core.v3 import DataSource
from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher
from envoy_data_plane.envoy.extensions.filters.common.fault.v3 import FaultDelay
from envoy_data_plane.envoy.extensions.filters.http.fault.v3 import FaultAbort, HttpFault
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.v3 import FractionalPercent, FractionalPercentDenominatorType
from envoy_data_plane.google.protobuf import Any

from extauthz.bootstrap.settings import EnvoySettings

MARK = "x-extauthz-flood"
"""What `floods.lua` puts on a call that is one too many; no client can, see `headers`. Its value
begins with `DENIED`, or with `strangers`, and ends with `BODY` where a large body comes with it."""

DENIED, BODY = "denied", "-body"

ABORTED = "fault_filter_abort"
"""The code details of Envoy's answer to such a call."""

_WAIT = timedelta(seconds=2)


def flood_filters(settings: EnvoySettings) -> list[HttpFilter]:
    """None where the listener itself names the agent: there are no others then."""
    if not settings.has_strangers:
        return []
    lua = Lua(default_source_code=DataSource(inline_string=flood_source()), stat_prefix="floods")
    always = FractionalPercent(numerator=100, denominator=FractionalPercentDenominatorType.HUNDRED)
    abort = FaultAbort(http_status=429, percentage=always)
    at_once = HttpFault(
        abort=abort,
        headers=[HeaderMatcher(name=MARK, string_match=StringMatcher(suffix=BODY))],
    )
    later = HttpFault(
        delay=FaultDelay(fixed_delay=_WAIT, percentage=always), abort=abort, headers=[is_marked()]
    )
    return [
        HttpFilter(name="extauthz.floods", typed_config=Any.pack(lua)),
        HttpFilter(name="extauthz.refused_at_once", typed_config=Any.pack(at_once)),
        HttpFilter(name="extauthz.refused_later", typed_config=Any.pack(later)),
    ]


def flood_source() -> str:
    """The Lua that counts."""
    return resources.files("extauthz.bootstrap").joinpath("floods.lua").read_text("utf-8")


def is_marked(*, invert: bool = False) -> HeaderMatcher:
    """A request that is one too many; with `invert`, any other."""
    return HeaderMatcher(name=MARK, present_match=True, invert_match=invert)
