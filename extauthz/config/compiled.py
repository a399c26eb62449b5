"""From the file's blocks to what the core works with: policies and prices."""

from collections.abc import Iterator

from genai_prices import data_snapshot

from extauthz.config.budgets import AgentBlock, BudgetBlock, MadeBlock
from extauthz.config.identity import IdentityBlock
from extauthz.config.model import Config
from extauthz.config.upstreams import ProviderBlock
from extauthz.config.values import usd_to_nano
from extauthz.identity import (
    CertificateRule,
    KeyRule,
    Rule,
    StaticRule,
    TokenRule,
    short_name,
)
from extauthz.ledger import SHARE_WHOLE
from extauthz.policies import (
    Agent,
    Budget,
    FixedPrice,
    OutputCaps,
    Policies,
    Scope,
    Template,
    Upstream,
)
from extauthz.pricing import OwnPrice, PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import REGIONAL


def policies_of(config: Config) -> Policies:
    """Everything a decision needs to know."""
    org = config.defaults.org
    found: dict[tuple[Scope, str], tuple[Budget, ...]] = {}
    for _, scope, name, blocks in config.budget_blocks():
        found[scope, name] = tuple(_budget(config, scope, name, block) for block in blocks)

    def of(scope: Scope, name: str | None) -> tuple[Budget, ...]:
        return found.get((scope, name or ""), ())

    agents = {
        name: _agent(
            config,
            name,
            block,
            of(Scope.AGENT, name) + of(Scope.TEAM, block.team) + of(Scope.ORG, org),
        )
        for name, block in config.agents.items()
    }
    made = config.defaults.agent
    template = None
    if made is not None:
        budgets = of(Scope.AGENT, "") + of(Scope.TEAM, made.team) + of(Scope.ORG, org)
        template = Template(_agent(config, "", made, budgets), made.max)
    keys = {key.hash: name for name, block in config.agents.items() for key in block.keys}
    return Policies(
        agents=agents,
        agent_by_key_hash={key: agents[name] for key, name in keys.items()},
        upstreams={name: _upstream(name, block) for name, block in config.providers.items()},
        # (those of agents that are yet to be made are nobody's)
        budgets=tuple(budget for group in found.values() for budget in group if budget.name),
        lease_ms=config.defaults.lease,
        settle_horizon_ms=config.defaults.settle_horizon,
        stream_ms_max=config.timeouts.max_stream_duration,
        orgs=(org,),
        teams=frozenset(config.teams),
        budgets_of_key={key: of(Scope.KEY, short_name(key)) for key in keys},
        budgets_of_provider={name: of(Scope.PROVIDER, name) for name in config.providers},
        budgets_of_models=tuple(b for name in config.models for b in of(Scope.MODEL, name)),
        identity=tuple(_rules(config.identity)),
        template=template,
    )


def _rules(blocks: tuple[IdentityBlock, ...]) -> Iterator[Rule]:
    for block in blocks:
        if block.jwt:
            yield TokenRule(block.jwt.issuer, block.jwt.claim, block.jwt.names)
        elif block.mtls:
            yield CertificateRule(block.mtls.names)
        elif block.static:
            yield StaticRule(block.static.agent)
        else:
            yield KeyRule()


def prices_of(config: Config) -> PriceBook:
    """The config's own prices before the public list."""
    return PriceBook(
        [OwnPrice(**dict(price)) for price in config.prices],
        call_ms_max=config.timeouts.max_stream_duration,
    )


def _agent(
    config: Config, name: str, block: AgentBlock | MadeBlock, budgets: tuple[Budget, ...]
) -> Agent:
    defaults = config.defaults
    return Agent(
        name=name,
        org=defaults.org,
        team=block.team,
        budgets=budgets,
        models_allowed=block.models.allow,
        max_in_flight=block.max_in_flight,
        output_caps=OutputCaps(
            default=block.default_output_tokens,
            default_of_models=tuple(
                (pattern, model.default_output_tokens)
                for pattern, model in config.models.items()
                if model.default_output_tokens
            ),
            default_of_all=defaults.default_output_tokens,
            least=defaults.min_output_tokens,
            comfort=defaults.comfort_output_tokens,
            share_permille=int(defaults.max_share * SHARE_WHOLE),
        ),
        hold_wait_ms=defaults.hold_wait,
        missing_usage=defaults.missing_usage,
        denied_status=defaults.denied_status,
    )


def _budget(config: Config, scope: Scope, name: str, block: BudgetBlock) -> Budget:
    return Budget(
        org=config.defaults.org,
        scope=scope,
        name=name,
        window=block.window_in(config.defaults.timezone),
        unit=block.unit,
        limit=block.limit_in_unit(),
        model=name if scope is Scope.MODEL else block.model,
        fit=(block.estimate or config.defaults.estimate) == "fit",
        shadow=block.shadow,
        explicit_id=block.id,
    )


def _upstream(name: str, block: ProviderBlock) -> Upstream:
    """The price list is found by the upstream's host, else (a gateway, a test) by the API."""
    adapter = ADAPTERS[block.api]
    try:
        source = data_snapshot.get_snapshot().find_provider(None, None, block.upstream).id
    except LookupError:
        source = adapter.price_provider
    return Upstream(
        name,
        block.api,
        source,
        deployments=block.deployments,
        fixed_prices=tuple(
            FixedPrice(endpoint.method, endpoint.path, usd_to_nano(endpoint.price_usd))
            for endpoint in block.endpoints
        ),
        allowed_headers=block.allow_headers,
        max_audio_seconds=block.max_audio_seconds,
        price_context=REGIONAL if adapter.regional_upstream.match(block.upstream) else {},
    )
