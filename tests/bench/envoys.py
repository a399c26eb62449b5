"""Envoys to compare with: one that only routes, and one that asks a server that decides nothing."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.check_request import PROVIDER
from bench.processes import free_port, listens_on, running, until
from extauthz.server.envoy import envoy_binary

_FILTERS = "type.googleapis.com/envoy.extensions.filters"
_HTTP = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_BODY_BYTES_MAX = 32 * 1024 * 1024


@contextmanager
def running_envoy(upstream_port: int, check_socket: Path | None) -> Iterator[tuple[str, int]]:
    """Its address and its process; with a socket it asks there before each call."""
    with tempfile.TemporaryDirectory(prefix="xa-bench-") as directory:
        port, path = free_port(), Path(directory) / "envoy.json"
        path.write_text(json.dumps(_bootstrap(port, upstream_port, check_socket)))
        base_id = Path(directory) / "base-id"
        command = [str(envoy_binary()), "-c", str(path), "-l", "error", "--use-dynamic-base-id"]
        command += ["--base-id-path", str(base_id)]
        with running(command, Path(directory) / "log") as process:
            until(lambda: listens_on(port), "Envoy does not start")
            yield f"http://127.0.0.1:{port}", process.pid


def _bootstrap(port: int, upstream_port: int, check_socket: Path | None) -> dict[str, Any]:
    filters = [] if check_socket is None else [_ext_authz()]
    filters.append(_filter("http.router", "http.router.v3.Router"))
    route = {"cluster": "upstream", "prefix_rewrite": "/", "timeout": "0s"}
    manager = {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": filters,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": f"/{PROVIDER}/"}, "route": route}],
                }
            ]
        },
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    listener = {
        "name": "egress",
        "address": _tcp(port),
        "per_connection_buffer_limit_bytes": _BODY_BYTES_MAX,
        "filter_chains": [{"filters": [network]}],
    }
    clusters = [_cluster("upstream", _tcp(upstream_port))]
    if check_socket is not None:
        http2 = {"@type": _HTTP, "explicit_http_config": {"http2_protocol_options": {}}}
        options = {"typed_extension_protocol_options": {_HTTP.partition("/")[2]: http2}}
        clusters.append(_cluster("check", {"pipe": {"path": str(check_socket)}}) | options)
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def _ext_authz() -> dict[str, Any]:
    service = {"envoy_grpc": {"cluster_name": "check"}, "timeout": "5s"}
    return _filter(
        "http.ext_authz",
        "http.ext_authz.v3.ExtAuthz",
        transport_api_version="V3",
        grpc_service=service,
        with_request_body={"max_request_bytes": _BODY_BYTES_MAX, "pack_as_bytes": True},
    )


def _filter(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    config = {"@type": f"{_FILTERS}.{kind}", **settings}
    return {"name": f"envoy.filters.{name}", "typed_config": config}


def _tcp(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _cluster(name: str, address: dict[str, Any]) -> dict[str, Any]:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "name": name,
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }
