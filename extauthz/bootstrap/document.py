"""The whole bootstrap: its parts put together, and printed."""

from datetime import timedelta

from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Admin,
    Bootstrap,
    BootstrapStaticResources,
)
from envoy_data_plane.envoy.config.core.v3 import Address, Node, Pipe
from envoy_data_plane.envoy.config.overload.v3 import (
    BufferFactoryConfig,
    OverloadAction,
    OverloadManager,
    ResourceMonitor,
    ScaledTrigger,
    ScaleTimersOverloadActionConfig,
    ScaleTimersOverloadActionConfigScaleTimer,
    ScaleTimersOverloadActionConfigTimerType,
    ThresholdTrigger,
    Trigger,
)
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections.v3 import (
    DownstreamConnectionsConfig,
)
from envoy_data_plane.envoy.extensions.resource_monitors.fixed_heap.v3 import FixedHeapConfig
from envoy_data_plane.google.protobuf import Any

from extauthz.bootstrap.clusters import local_clusters
from extauthz.bootstrap.listeners import (
    OWNER_ONLY,
    egress_listener,
    hop_listener,
    intercept_listener,
)
from extauthz.bootstrap.printing import as_yaml
from extauthz.bootstrap.settings import EnvoySettings
from extauthz.bootstrap.upstreams import provider_cluster, secret, token_clusters

_HEAP = "envoy.resource_monitors.fixed_heap"
_LEAST_TRACKED_POWER = 13
"""Streams that hold 2^13 bytes and more can be reset: in eight classes, the largest first."""


def document(settings: EnvoySettings) -> str:
    """The bootstrap as YAML."""
    return as_yaml(bootstrap(settings))


def bootstrap(settings: EnvoySettings) -> Bootstrap:
    """The bootstrap as Envoy's own message: typed, so a wrong name fails here and not in Envoy."""
    secrets = [secret(provider) for provider in settings.providers]
    return Bootstrap(
        node=Node(id=settings.node_id, cluster=settings.node_cluster),
        # Whoever can write to this socket can stop the egress.
        admin=Admin(
            address=Address(pipe=Pipe(path=str(settings.admin_socket), mode=OWNER_ONLY)),
            ignore_global_conn_limit=True,
        ),
        overload_manager=_overload_manager(settings),
        # Statistics are computed when the admin socket is asked, there is nowhere to push them.
        stats_flush_on_admin=True,
        static_resources=BootstrapStaticResources(
            listeners=[
                egress_listener(settings),
                *([intercept_listener(settings)] if settings.intercepted else []),
                hop_listener(settings),
            ],
            clusters=[
                *(provider_cluster(settings, provider) for provider in settings.providers),
                *local_clusters(settings),
                *token_clusters(settings),
            ],
            secrets=[one for one in secrets if one is not None],
        ),
    )


def _overload_manager(settings: EnvoySettings) -> OverloadManager:
    """What Envoy does near the end of its memory, so that nobody's idle streams keep it there.

    First who says nothing is hung up on sooner, then the streams that hold most are reset, and only
    at the last are new calls refused (503).
    """
    return OverloadManager(
        refresh_interval=timedelta(milliseconds=250),
        resource_monitors=[
            _connections(settings),
            ResourceMonitor(
                name=_HEAP,
                typed_config=Any.pack(FixedHeapConfig(max_heap_size_bytes=settings.max_heap_bytes)),
            ),
        ],
        actions=[
            _above("envoy.overload_actions.shrink_heap", 0.8),
            _between("envoy.overload_actions.reduce_timeouts", 0.7, 0.85, _shorter_timeouts()),
            _between("envoy.overload_actions.reset_high_memory_stream", 0.8, 0.95),
            _above("envoy.overload_actions.disable_http_keepalive", 0.9),
            _above("envoy.overload_actions.stop_accepting_requests", 0.95),
        ],
        buffer_factory_config=BufferFactoryConfig(
            minimum_account_to_track_power_of_two=_LEAST_TRACKED_POWER
        ),
    )


def _shorter_timeouts() -> ScaleTimersOverloadActionConfig:
    """A stream that waits for its provider is silent too, and charged if cut: it has longer."""
    least = {
        ScaleTimersOverloadActionConfigTimerType.HTTP_DOWNSTREAM_CONNECTION_IDLE: 2,
        ScaleTimersOverloadActionConfigTimerType.TRANSPORT_SOCKET_CONNECT: 2,
        ScaleTimersOverloadActionConfigTimerType.HTTP_DOWNSTREAM_STREAM_IDLE: 60,
    }
    return ScaleTimersOverloadActionConfig(
        timer_scale_factors=[
            ScaleTimersOverloadActionConfigScaleTimer(
                timer=timer, min_timeout=timedelta(seconds=seconds)
            )
            for timer, seconds in least.items()
        ]
    )


def _between(
    action: str,
    begins: float,
    is_full: float,
    config: ScaleTimersOverloadActionConfig | None = None,
) -> OverloadAction:
    scaled = ScaledTrigger(scaling_threshold=begins, saturation_threshold=is_full)
    return OverloadAction(
        name=action,
        triggers=[Trigger(name=_HEAP, scaled=scaled)],
        typed_config=None if config is None else Any.pack(config),
    )


def _above(action: str, share: float) -> OverloadAction:
    return OverloadAction(
        name=action,
        triggers=[Trigger(name=_HEAP, threshold=ThresholdTrigger(value=share))],
    )


def _connections(settings: EnvoySettings) -> ResourceMonitor:
    """A bound on agents' connections: each may hold a whole body in memory."""
    return ResourceMonitor(
        name="envoy.resource_monitors.global_downstream_max_connections",
        typed_config=Any.pack(
            DownstreamConnectionsConfig(
                max_active_downstream_connections=settings.max_agent_connections
            )
        ),
    )
