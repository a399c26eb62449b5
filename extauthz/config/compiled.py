"""From the file's blocks to what the core works with: policies and prices."""

from collections.abc import Iterable

from genai_prices import data_snapshot

from extauthz.config.model import AgentBlock, BudgetBlock, Config, ProviderBlock
from extauthz.policies import Agent, Budget, Policies, Scope, Upstream
from extauthz.pricing import OwnPrice, PriceBook
from extauthz.providers import ADAPTERS
from extauthz.windows import Window


def policies_of(config: Config) -> Policies:
    """Everything a decision needs to know."""
    org = config.defaults.org
    shared: dict[str, tuple[Budget, ...]] = {
        name: _budgets(config, Scope.TEAM, name, team.budgets)
        for name, team in config.teams.items()
    }
    of_org = _budgets(
        config, Scope.ORG, org, config.orgs[org].budgets if org in config.orgs else ()
    )
    own = {
        name: _budgets(config, Scope.AGENT, name, agent.budgets)
        for name, agent in config.agents.items()
    }
    agents = {
        name: _agent(config, name, block, own[name] + shared.get(block.team or "", ()) + of_org)
        for name, block in config.agents.items()
    }
    return Policies(
        agents=agents,
        agent_by_key_hash={
            key: agents[name] for name, block in config.agents.items() for key in block.keys
        },
        upstreams={name: _upstream(name, block) for name, block in config.providers.items()},
        budgets=tuple(b for group in (*own.values(), *shared.values(), of_org) for b in group),
        lease_ms=config.defaults.lease,
        settle_horizon_ms=config.defaults.settle_horizon,
        stream_ms_max=config.timeouts.max_stream_duration,
        orgs=(org,),
    )


def prices_of(config: Config) -> PriceBook:
    """The config's own prices before the public list."""
    return PriceBook([OwnPrice(**dict(price)) for price in config.prices])


def _agent(config: Config, name: str, block: AgentBlock, budgets: tuple[Budget, ...]) -> Agent:
    defaults = config.defaults
    return Agent(
        name=name,
        org=defaults.org,
        team=block.team,
        budgets=budgets,
        models_allowed=block.models.allow,
        max_in_flight=block.max_in_flight,
        default_output_tokens=block.default_output_tokens or defaults.default_output_tokens,
        hold_wait_ms=defaults.hold_wait,
        missing_usage=defaults.missing_usage,
        denied_status=defaults.denied_status,
    )


def _budgets(
    config: Config, scope: Scope, name: str, blocks: Iterable[BudgetBlock]
) -> tuple[Budget, ...]:
    return tuple(
        Budget(
            org=config.defaults.org,
            scope=scope,
            name=name,
            window=Window(block.window, block.timezone or config.defaults.timezone),
            unit=block.unit,
            limit=block.limit_in_unit(),
            model=block.model,
            shadow=block.shadow,
            explicit_id=block.id,
        )
        for block in blocks
    )


def _upstream(name: str, block: ProviderBlock) -> Upstream:
    """The price list is found by the upstream's host, else (a gateway, a test) by the API."""
    fallback = ADAPTERS[block.api].price_provider
    try:
        source = data_snapshot.get_snapshot().find_provider(None, None, block.upstream).id
    except LookupError:
        source = fallback
    return Upstream(name, block.api, source)
