"""Callers whose key was never let in: so many of their calls a second reach Check, and no more.

`strangers.lua` counts, and marks the calls that are too many. The fault filter lets these wait, so
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
from envoy_data_plane.envoy.type.v3 import FractionalPercent, FractionalPercentDenominatorType
from envoy_data_plane.google.protobuf import Any

from extauthz.bootstrap.settings import EnvoySettings

MARK = "x-extauthz-stranger"
"""What `strangers.lua` puts on a call that is one too many; no client can, see `headers`."""

ABORTED = "fault_filter_abort"
"""The code details of Envoy's answer to such a call."""

_WAIT = timedelta(seconds=2)


def stranger_filters(settings: EnvoySettings) -> list[HttpFilter]:
    """None where the listener itself names the agent: there is no stranger then."""
    if not settings.has_strangers:
        return []
    source = resources.files("extauthz.bootstrap").joinpath("strangers.lua").read_text("utf-8")
    lua = Lua(default_source_code=DataSource(inline_string=source), stat_prefix="strangers")
    always = FractionalPercent(numerator=100, denominator=FractionalPercentDenominatorType.HUNDRED)
    fault = HttpFault(
        delay=FaultDelay(fixed_delay=_WAIT, percentage=always),
        abort=FaultAbort(http_status=429, percentage=always),
        headers=[is_marked()],
    )
    return [
        HttpFilter(name="extauthz.strangers", typed_config=Any.pack(lua)),
        HttpFilter(name="envoy.filters.http.fault", typed_config=Any.pack(fault)),
    ]


def is_marked(*, invert: bool = False) -> HeaderMatcher:
    """A request that is one too many; with `invert`, any other."""
    return HeaderMatcher(name=MARK, present_match=True, invert_match=invert)
