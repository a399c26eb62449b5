"""The config's values: exact, bounded, of their type, and each read by something."""

import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import extauthz
from extauthz.config import Config, ConfigError, example_text, load, parse, policies_of, prices_of
from extauthz.config import budgets as config_budgets
from extauthz.config import identity as config_identity
from extauthz.config import model as config_model
from extauthz.config import upstreams as config_upstreams
from extauthz.policies import MissingUsage, OutputCaps, Scope, Unit
from extauthz.windows import Period, Window

CONFIG_FILES = (config_identity, config_budgets, config_upstreams, config_model)
MODELS = {"model.py", "budgets.py", "upstreams.py"}
PROVIDER = 'providers: {openai: {api: openai, upstream: "https://api.openai.com"}}\n'
HASH = "sha256:" + "ab" * 32


def read(text: str, providers: str = PROVIDER) -> Config:
    return parse(providers + text + "\n", source="test", base=Path("/base"))


def errors(text: str, providers: str = PROVIDER) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, providers)
    return caught.value.errors


def budget_text(fields: str) -> str:
    return f"agents: {{a: {{budgets: [{{{fields}}}]}}}}"


def limit_of(text: str) -> int:
    (budget,) = policies_of(read(budget_text(f"window: day, limit: {text}"))).agents["a"].budgets
    return budget.limit


@pytest.mark.parametrize(
    ("text", "nanousd"),
    [
        ("0.1", 10**8), ("25", 25 * 10**9), ("25.00", 25 * 10**9), ('"25.00"', 25 * 10**9),
        ("1e3", 10**12), ("1E-9", 1), (".5", 5 * 10**8), ("010", 10**10), ("0", 0),
        ("0.000000001", 1), ("+1", 10**9),
    ],
)  # fmt: skip
def test_an_amount_is_read_as_the_decimal_that_it_is(text, nanousd):
    assert limit_of(text) == nanousd


@given(st.decimals(0, 4_000_000, places=9, allow_nan=False, allow_infinity=False))
def test_no_digit_of_an_amount_is_lost(usd):
    assert Decimal(limit_of(f"{usd:f}")) == usd * 10**9


@pytest.mark.parametrize(
    "text",
    [
        ".inf", "-.inf", ".nan", "true", "yes", "null", "-1", "1:30", "0x10", "[1]", "{a: 1}",
        '"1,5"', "ten", "1e999999999", "1e-999999999", "0.0000000001", "4503599.7", '""',
        "2026-01-01", "0." + "1" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_amount_is_an_error_at_its_place(text):
    (error,) = errors(budget_text(f"window: day, limit: {text}"))
    assert error.startswith("agents.a.budgets[0].limit: ")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("agents: {a: {max_in_flight: true}}", "agents.a.max_in_flight"),
        ("defaults: {estimate: loose}", "defaults.estimate"),
        (budget_text("window: day, limit: 1, estimate: no"), "agents.a.budgets[0].estimate"),
        ("defaults: {min_output_tokens: 0}", "defaults.min_output_tokens"),
        ("defaults: {comfort_output_tokens: 1.5}", "defaults.comfort_output_tokens"),
        ("defaults: {max_share: 0}", "defaults.max_share"),
        ("defaults: {max_share: 1.1}", "defaults.max_share"),
        ("defaults: {max_share: 0.0001}", "defaults.max_share"),
        ("models: {m: {default_output_tokens: 0}}", "models.m.default_output_tokens"),
        ("teams: {t: {default_output_tokens: 5}}", "teams.t.default_output_tokens"),
        ("agents: {a: {default_output_tokens: false}}", "agents.a.default_output_tokens"),
        ("agents: {a: {default_output_tokens: 1.5}}", "agents.a.default_output_tokens"),
        ("agents: {a: {default_output_tokens: 0}}", "agents.a.default_output_tokens"),
        (budget_text("window: day, limit: 1, shadow: 1"), "agents.a.budgets[0].shadow"),
        (budget_text("window: day, limit: 1, shadow: no"), "agents.a.budgets[0].shadow"),
        (budget_text("window: day, limit: 1.5, unit: tokens"), "agents.a.budgets[0].limit"),
        (budget_text("window: day, limit: 1e400, unit: requests"), "agents.a.budgets[0].limit"),
        (budget_text(r'window: day, limit: 1, model: "a\r\nb"'), "agents.a.budgets[0].model"),
        (budget_text("window: day, limit: 1, model: 'a\"b'"), "agents.a.budgets[0].model"),
        (budget_text("window: day, limit: 1, timezone: 5"), "agents.a.budgets[0].timezone"),
        (budget_text("window: day, limit: 1, timezone: ../x"), "agents.a.budgets[0].timezone"),
        ("data_dir: 5", "data_dir"),
        ("data_dir: null", "data_dir"),
        ('data_dir: ""', "data_dir"),
        ('data_dir: "~nosuchuser/x"', "data_dir"),
        ("prices: [{provider: openai, model: m, input: 1e999999, output: 1}]", "prices[0].input"),
        ("prices: [{provider: openai, model: m, input: 1, output: 2e6}]", "prices[0].output"),
        ("prices: [{provider: openai, model: m, input: -1, output: 1}]", "prices[0].input"),
        ("defaults: {settle_horizon: 0s}", "defaults.settle_horizon"),
        ("defaults: {lease: 999999999999999999d}", "defaults.lease"),
        ("defaults: {lease: 367d}", "defaults.lease"),
        ("defaults: {hold_wait: 11s}", "defaults.hold_wait"),
        ("timeouts: {max_stream_duration: 0s}", "timeouts.max_stream_duration"),
        ("timeouts: {stream_idle_timeout: 0ms}", "timeouts.stream_idle_timeout"),
        ("defaults: {denied_status: 200}", "defaults.denied_status"),
        ("agents: {1: {}}", "agents[1]"),
        ('agents: {"a/b": {}}', "agents.a/b"),
        ("<<: {a: 1}", "<<"),
    ],
)
def test_a_value_of_another_type_or_out_of_bounds_is_an_error_at_its_place(text, path):
    assert any(error.startswith(f"{path}: ") for error in errors(text)), errors(text)


@pytest.mark.parametrize(
    "url",
    ["https://x:99999", "https://x:0", "https://[x", "https://:pw@x", "https://u:pw@x", "ftp://x",
     "api.openai.com", "https://x?a", "https://x#a", "https://", ""],
)  # fmt: skip
def test_an_upstream_is_a_plain_url(url):
    (error,) = errors("", f'providers: {{p: {{api: openai, upstream: "{url}"}}}}\n')
    assert error.startswith("providers.p.upstream: ")
    assert "pw" not in error


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("defaults: {failure_mode: allow}", "defaults.failure_mode"),
        ("orgs: {other: {}}", "orgs.other"),
    ],
)
def test_a_name_of_the_contract_that_is_not_built_says_so(text, path):
    (error,) = errors(text)
    assert error.startswith(f"{path}: ")
    assert "built" in error


def test_every_error_is_told_at_once():
    text = """
agents:
  a: {team: 5, keys: [x], unknown: 1, budgets: [{limit: -1, window: year}]}
defaults: {lease: 5, max_share: 1.5}
"""
    found = {error.partition(":")[0] for error in errors(text)}
    assert found == {
        "agents.a.team", "agents.a.keys[0]", "agents.a.unknown", "agents.a.budgets[0].limit",
        "agents.a.budgets[0].window", "defaults.lease", "defaults.max_share",
    }  # fmt: skip


def test_contradictions_between_blocks_are_told_at_once():
    text = f"""
prices: [{{provider: nobody, model: m, input: 1, output: 1}}]
agents:
  a:
    team: none
    keys: ["{HASH}"]
    budgets: [{{limit: 1, window: day}}, {{limit: 2, window: day}}]
  b: {{keys: ["{HASH}"], budgets: [{{limit: 1, window: day, id: same}}]}}
  c: {{budgets: [{{limit: 1, window: week, id: same}}]}}
"""
    found = {error.partition(": ")[0] for error in errors(text)}
    assert found == {
        "prices[0].provider", "agents.a.team", "agents.b.keys[0]", "agents.a.budgets[1]",
        "agents.c.budgets[0]",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "agents: {a: {}, a: {}}", "a: 1\na: 2", "agents: {[1]: {}}", "a: &a [*a]",
        "agents: &a {b: *a}", "a: [", "{a: " * 900, "a: 1\n---\nb: 2", 'a: "\x00"', "- 1\n- 2",
        'a: !!python/object/apply:os.system ["true"]', "a: " + "9" * 5000, "\t", "a: *nobody",
    ],
)  # fmt: skip
def test_what_is_no_plain_yaml_is_one_error(text):
    (error,) = errors(text, providers="")
    assert error.startswith(("not valid YAML: ", "the file must be a mapping"))


def test_a_file_that_is_nested_too_deeply_is_an_error():
    (error,) = errors("a: " + "[" * 1500, providers="")
    assert error.startswith("not valid YAML: ")


def laughs(first: str, deeper: str) -> str:
    lines = [f"a: &a {first}"]
    for name, previous in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"{name}: &{name} {deeper}".replace("*", ", ".join([f"*{previous}"] * 9)))
    return "\n".join(lines)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "bomb",
    [laughs("[x, x, x]", "[*]"), laughs("{x: 1}", "{<<: [*]}")],
    ids=["lists", "merges"],
)
def test_a_bomb_of_aliases_does_not_hang(bomb):
    assert errors(bomb + "\nagents: {q: {budgets: *j, keys: *j, models: {allow: *j}}}")


def test_an_anchor_may_be_used_twice():
    config = read("agents: {a: {budgets: &b [{limit: 1, window: day}]}, b: {budgets: *b}}")
    assert {name: len(agent.budgets) for name, agent in config.agents.items()} == {"a": 1, "b": 1}


def test_plain_words_are_names_whatever_yaml_1_1_made_of_them():
    config = read("agents: {no: {}, on: {}, 2026-01-01: {}, y: {}}")
    assert set(config.agents) == {"no", "on", "2026-01-01", "y"}


def test_the_config_is_compiled_into_what_it_says():
    config = read(
        f"""
prices: [{{provider: openai, model: FT-x*, input: 0.1, output: 0.30, max_output_tokens: 7}}]
timeouts: {{max_stream_duration: 2h}}
defaults: {{timezone: Europe/Berlin, default_output_tokens: 9, hold_wait: 250ms,
            missing_usage: observed, denied_status: 402, lease: 20m, settle_horizon: 2d}}
agents:
  bot:
    team: support
    keys: ["{HASH}"]
    max_in_flight: 3
    default_output_tokens: 5
    models: {{allow: ["GPT-4o*"]}}
    budgets:
      - {{limit: 25.00, window: day}}
      - {{limit: 3000, unit: tokens, window: week, timezone: UTC, model: GPT-5*, shadow: true,
         id: x}}
  other: {{}}
teams: {{support: {{budgets: [{{limit: 200, window: month}}]}}}}
orgs: {{default: {{budgets: [{{limit: 10, unit: requests, window: minute}}]}}}}
"""
    )
    policies = policies_of(config)
    bot, other = policies.agents["bot"], policies.agents["other"]
    assert policies.agent_by_key_hash == {HASH: bot}
    assert [budget.id for budget in bot.budgets] == [
        "agent/bot/day/usd", "x", "team/support/month/usd", "org/default/minute/requests",
    ]  # fmt: skip
    assert bot.budgets[0].window == Window(Period.DAY, "Europe/Berlin")
    tokens = bot.budgets[1]
    assert (tokens.unit, tokens.limit, tokens.model, tokens.shadow) == (
        Unit.TOKENS, 3000, "gpt-5*", True,
    )  # fmt: skip
    assert tokens.window == Window(Period.WEEK, "UTC")
    assert [budget.scope for budget in other.budgets] == [Scope.ORG]
    assert bot.max_in_flight == 3
    assert (bot.output_caps.default_for("x"), other.output_caps.default_for("x")) == (5, 9)
    assert (bot.hold_wait_ms, bot.denied_status) == (250, 402)
    assert bot.missing_usage is MissingUsage.OBSERVED
    assert (bot.allows("gpt-4o-mini"), bot.allows("o1")) == (True, False)
    assert (policies.lease_ms, policies.settle_horizon_ms) == (1_200_000, 172_800_000)
    assert policies.memory_ms == 7_200_000 + 1_200_000 + 172_800_000
    priced = prices_of(config).find("openai", "openai", "ft-X-1")
    assert priced is not None
    assert (priced.own is not None, priced.output_tokens_max) == (True, 7)
    assert str(config.data_dir) == "/base/.extauthz"


def test_a_budget_caps_calls_to_fit_unless_it_is_strict():
    config = read(
        """
agents:
  bot: {budgets: [{limit: 1, window: day}, {limit: 1, window: hour, estimate: strict}]}
"""
    )
    bot = policies_of(config).agents["bot"]
    assert [budget.fit for budget in bot.budgets] == [True, False]
    assert bot.output_caps == OutputCaps(None, (), None, 256, 4096, 250)


def test_strict_may_be_the_default_and_fit_the_exception():
    config = read(
        """
defaults: {estimate: strict, min_output_tokens: 10, comfort_output_tokens: 20, max_share: 0.125}
agents:
  bot: {budgets: [{limit: 1, window: day}, {limit: 1, window: hour, estimate: fit}]}
"""
    )
    bot = policies_of(config).agents["bot"]
    assert [budget.fit for budget in bot.budgets] == [False, True]
    assert bot.output_caps == OutputCaps(None, (), None, 10, 20, 125)


def test_a_default_cap_is_the_agents_own_else_the_models_else_the_default():
    config = read(
        """
defaults: {default_output_tokens: 9}
agents: {bot: {default_output_tokens: 5}, other: {}}
models: {"GPT-5*": {default_output_tokens: 7}, "gpt*": {default_output_tokens: 8}}
"""
    )
    agents = policies_of(config).agents
    other = agents["other"].output_caps
    assert agents["bot"].output_caps.default_for("gpt-5") == 5
    assert [other.default_for(*n) for n in (("gpt-5",), ("x", "GPT-4"), ("x",))] == [7, 8, 9]


def test_a_call_counts_on_the_budgets_of_every_scope_that_it_falls_under():
    other_key = f"sha256:{'7' * 64}"
    config = read(
        f"""
providers:
  openai:
    api: openai
    upstream: https://api.openai.com
    budgets: [{{limit: 50, window: rolling, length: 7d}}]
  anthropic: {{api: anthropic, upstream: "https://api.anthropic.com"}}
models: {{"GPT-5*": {{budgets: [{{limit: 9, window: day}}]}}}}
agents:
  bot:
    keys:
      - {{hash: "{HASH}", budgets: [{{limit: 1, window: hour}}]}}
      - {other_key}
    budgets: [{{limit: 5, window: day, model: "gpt-5-mini"}}]
""",
        "",
    )
    policies = policies_of(config)
    bot = policies.agents["bot"]

    def ids(key: str, provider: str, model: str) -> set[str]:
        return {budget.id for budget in policies.budgets_for(bot, key, provider, (model,))}

    of_key = f"key/{HASH.removeprefix('sha256:')[:12]}/hour/usd"
    of_all = {"provider/openai/rolling-7d/usd"}
    of_models = {"model/gpt-5*/day/usd", "agent/bot/day/usd/gpt-5-mini"}
    assert ids(HASH, "openai", "gpt-5-mini") == {of_key} | of_all | of_models
    assert ids(other_key, "anthropic", "gpt-4o") == set()
    assert ids(other_key, "openai", "GPT-5") == of_all | {"model/gpt-5*/day/usd"}
    assert {budget.id for budget in policies.budgets} == {of_key} | of_all | of_models


def test_what_a_provider_or_model_may_cost_is_no_budget_of_an_agent():
    config = read(
        f"""
providers:
  openai: {{api: openai, upstream: "https://api.openai.com", budgets: [{{limit: 5, window: day}}]}}
models: {{"gpt*": {{budgets: [{{limit: 9, window: day}}]}}}}
agents: {{bot: {{keys: ["{HASH}"]}}}}
""",
        "",
    )
    policies = policies_of(config)
    assert not policies.has_budget(policies.agents["bot"], HASH)


def test_the_price_list_is_that_of_the_upstreams_host_else_of_its_api():
    providers = """
providers:
  a: {api: openai, upstream: "https://api.openai.com"}
  b: {api: openai, upstream: "http://127.0.0.1:8000"}
  c: {api: openai, upstream: "https://api.groq.com/openai"}
  d: {api: anthropic, upstream: "https://api.anthropic.com"}
"""
    upstreams = policies_of(read("", providers)).upstreams
    assert {name: upstream.price_provider for name, upstream in upstreams.items()} == {
        "a": "openai", "b": "openai", "c": "groq", "d": "anthropic",
    }  # fmt: skip


def test_the_example_is_a_good_config():
    assert policies_of(parse(example_text(), source="example", base=Path("/"))).agents


def blocks(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for info in model.model_fields.values():
        for name in re.findall(r"\w+Block", str(info.annotation)):
            file = next(each for each in CONFIG_FILES if hasattr(each, name))
            found |= blocks(getattr(file, name))
    return found


def test_nothing_is_read_that_does_nothing():
    refused = {
        "estimate", "failure_mode", "min_output_tokens", "comfort_output_tokens",
        "max_share",
    }  # fmt: skip
    root = Path(extauthz.__file__).parent
    code = "\n".join(path.read_text() for path in root.rglob("*.py") if path.name not in MODELS)
    copied_whole = {"PriceBlock"}
    unused = [
        f"{block.__name__}.{name}"
        for block in blocks(Config)
        if block.__name__ not in copied_whole
        for name in block.model_fields
        if name not in refused and not re.search(rf"\.{name}\b", code)
    ]
    assert unused == []


def test_every_relative_path_starts_at_the_folder_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = tmp_path / "extauthz.yaml"
    path.write_text(
        "providers:\n"
        "  p: {api: openai, upstream: 'https://h', credential: {file: key}, ca_file: ca.pem}\n"
        "books: {key: {file: books.key}}\n"
    )

    config = load(path)

    provider = config.providers["p"]
    found = (config.data_dir, provider.credential.file, provider.ca_file, config.books.key.file)
    assert found == tuple(tmp_path / n for n in (".extauthz", "key", "ca.pem", "books.key"))
