"""Prices: the list of genai-prices, and the config's own prices before it.

An unpriced model has no price, never the price zero. A price may depend on the date and the time of
day (DeepSeek's doubles at certain hours), and which moment of a call counts is not documented: a
call is estimated at the dearest hour that it may end in, and settled at its own dearer end.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import translate
from functools import lru_cache
from importlib.metadata import version

from genai_prices import Usage, data_snapshot, types
from genai_prices.data_units import unit_data

from extauthz.money import ceil_nanousd
from extauthz.pricing.bill import BillLine, bill_of
from extauthz.pricing.dearest import DearestRates
from extauthz.pricing.estimate import Bound, Estimate, estimate_of
from extauthz.pricing.hour_writes import with_hour_writes
from extauthz.pricing.limits import (
    TOKENS_MAX_UNKNOWN,
    caps_bind,
    context_window_max,
    image_tokens_max,
    is_output_documented,
    output_tokens_max,
)
from extauthz.pricing.regions import in_region
from extauthz.providers.base import RequestFacts
from extauthz.usage import UsageReport

_MODELS_REMEMBERED = 4096
"""Clients choose model names, so the memory of them is bounded."""

_MODEL_NAME = re.compile(r"[!-~]{1,256}")
"""What can be a model's name: ASCII without blanks. It is written into logs and books, so no prompt
must pass for one, however wide a glob of `prices` or the public list's own patterns are."""

# Kinds of usage whose price no other kind's stands in for. (Parts of the input, such as what was
# read from a cache, are billed as input where they have no price of their own.)
_PRICES_REMEMBERED = 64
"""Of one model, at most: each is for one second and one way to be served."""

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS

_NEED_A_PRICE = frozenset(("input_tokens", "output_tokens")).union(
    kind for kind, unit in unit_data.items() if unit["dimensions"]["family"] != "tokens"
)

_DEARER = frozenset((("service_tier", "priority"), ("service_tier", "fast"), ("speed", "fast")))
"""Ways to be served that cost more than the standard one, wherever they are sold."""

_SOUND_IS_LIKE_TEXT = ("google",)
"""Lists that have a price for sound only where it differs from that of text."""

CONFIG_PRICE = "config"
"""The version of a price that the config names."""

PRICE_LIST_VERSION = f"genai-prices/{version('genai_prices')}"


@dataclass(frozen=True, slots=True)
class OwnPrice:
    """One entry of the config's `prices`, in USD per million tokens.

    `model` is a name or a glob; the optional cache rates fall back to the input price. Without
    `output` the price is for what has no output, such as embeddings. A `fallback` counts only where
    nothing else prices the model.
    """

    provider: str
    model: str
    input: Decimal
    output: Decimal | None = None
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    cache_write_1h: Decimal | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None
    fallback: bool = False


_Moment = tuple[int, tuple[tuple[str, str], ...]]
"""A second, and how a call is served."""

_Kind = tuple[int, bool, bool, tuple[tuple[tuple[str, str], ...], ...]]
"""A second, whether there are media and cache writes, and every way in which a call is served."""


@dataclass(frozen=True, slots=True)
class PricedModel:
    """A model with a price.

    Attributes:
        info: its prices.
        source: the list that they are from.
        output_tokens_max: an upper bound of one answer.
        context_window: an upper bound of it; None: not known.
        own: set where the config priced it.
        caps_bind: whether an output cap bounds all of its output.
        cap_max: the largest cap that it is known to take; None: not known.
        image_tokens_max: an upper bound of the input that one picture is; None: not known.
        call_ms_max: how long a call lasts at most.
    """

    info: types.ModelInfo
    source: types.Provider
    output_tokens_max: int
    context_window: int | None
    own: OwnPrice | None = None
    caps_bind: bool = True
    cap_max: int | None = None
    image_tokens_max: int | None = None
    call_ms_max: int = _HOUR_MS
    _known: dict[_Moment, types.ModelPrice] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _rates: dict[_Kind, tuple[DearestRates, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def bounded(self, facts: RequestFacts) -> RequestFacts:
        """The facts without a cap that does not bind this model."""
        if self.caps_bind or facts.output_tokens_cap == 0:
            return facts
        return replace(facts, output_tokens_cap=None, cap_slot=None, other_caps=())

    def covers(self, facts: RequestFacts, at_ms: int) -> bool:
        """Whether all that the call can be billed for has a price.

        The list has models that hear and speak with a price for text only, and dearer ways to be
        served (priority, fast mode) without theirs. A price of the config is for whatever goes in
        and out, served the standard way.
        """
        premium = facts.premium
        if premium is not None and not self._has_variant(premium, at_ms):
            return False
        prices = vars(self._prices(at_ms, {}))
        if any(prices.get(key) is None for key in facts.bills):
            return False
        sound = ("input", "output") if facts.audio else ("input",) if facts.heard else ()
        return self.own is not None or all(self._prices_sound(at_ms, way) for way in sound)

    @property
    def price_version(self) -> str:
        """Where the price comes from, for the books."""
        return CONFIG_PRICE if self.own else PRICE_LIST_VERSION

    def estimate(
        self, facts: RequestFacts, at_ms: int, default_output_tokens: int | None
    ) -> Estimate:
        """A true upper bound of a call's cost.

        `default_output_tokens` bounds a call that names no cap; the caller must then write it into
        the request as its cap.
        """
        return estimate_of([self.bound(facts, at_ms, default_output_tokens)], facts)

    def bound(self, facts: RequestFacts, at_ms: int, default_output_tokens: int | None) -> Bound:
        """What bounds a call where this model answers."""
        facts = self.bounded(facts)
        input_tokens = self._input_tokens_max(facts)
        cap = facts.output_tokens_cap
        if cap is None:
            cap = default_output_tokens or self.output_tokens_max
        return Bound(input_tokens, cap, self._dearest_rates(facts, at_ms))

    def _input_tokens_max(self, facts: RequestFacts) -> int:
        window = self.context_window or TOKENS_MAX_UNKNOWN
        text, each = facts.input_tokens_max, self.image_tokens_max
        if text is None or (facts.images and each is None):
            return window
        if not facts.images or each is None:
            return text
        return min(window, text + facts.images * each)

    def cost(self, report: UsageReport, at_ms: int) -> int:
        """What the usage cost, in nano-USD, rounded up once.

        Raises:
            ValueError: the usage contradicts itself (more cached tokens than tokens), or has
                something, such as sound or a faster way to be served, for which there is no
                price: genai-prices would count that as nothing, or as the standard way.
        """
        prices = self._prices(at_ms, report.price_context)
        for kind, count in report.amounts.items():
            if count and kind in _NEED_A_PRICE and not _prices_kind(prices, kind):
                raise ValueError(f"{self.info.id} has no price for {kind}")
        dearer = {key: way for key, way in report.price_context.items() if (key, way) in _DEARER}
        if dearer and self.own is None and not self._has_variant(dearer, at_ms):
            raise ValueError(f"{self.info.id} has no price for {dearer}")
        ways = {_way_of_sound(kind) for kind, count in report.amounts.items() if count}
        if self.own is None and not all(
            way is None or self._prices_sound(at_ms, way) for way in ways
        ):
            raise ValueError(f"{self.info.id} has no price for audio")
        usage = Usage(**report.amounts)
        usd: Decimal = prices.calc_price(usage)["total_price"]
        return ceil_nanousd(max(usd, report.told_cost_usd or Decimal(0)))

    def dearest_cost(self, report: UsageReport, from_ms: int, until_ms: int) -> tuple[int, int]:
        """As `cost`, at the dearer end of a call; and that end.

        Raises:
            ValueError: as `cost`.
        """
        context = report.price_context
        begun, ended = self._prices(from_ms, context), self._prices(until_ms, context)
        if begun is ended or begun == ended:  # as nearly always: then it is worked out once
            return self.cost(report, until_ms), until_ms
        return max((self.cost(report, at_ms), at_ms) for at_ms in (from_ms, until_ms))

    def bill(self, report: UsageReport, at_ms: int) -> tuple[BillLine, ...]:
        """What `cost` is made of: usage by kind, each with the rate that applied to it.

        Raises:
            ValueError: the usage contradicts itself.
        """
        return bill_of(self._prices(at_ms, report.price_context), Usage(**report.amounts))

    def _dearest_rates(self, facts: RequestFacts, at_ms: int) -> tuple[DearestRates, ...]:
        """At all prices that a call may be billed at, now or at its end."""
        contexts = tuple([tuple(context.items()) for context in facts.price_contexts])
        kind = at_ms // 1000, facts.media, facts.cache_writes, contexts
        found = self._rates.get(kind)
        if found is None:
            prices: list[types.ModelPrice] = []
            for context in facts.price_contexts:
                for moment_ms in self._ends(at_ms):
                    price = self._prices(moment_ms, context)
                    if price not in prices:
                        prices.append(price)
            # (those of another second are nobody's any more, and clients choose among many models)
            if len(self._rates) >= _PRICES_REMEMBERED or any(a != kind[0] for a, *_ in self._rates):
                self._rates.clear()
            found = self._rates[kind] = tuple(
                DearestRates(price, media=facts.media, cache_writes=facts.cache_writes)
                for price in prices
            )
        return found

    def _ends(self, at_ms: int) -> Iterator[int]:
        """When a call may end, to the hour; what a price does in a day, it does in the next."""
        yield from range(at_ms, at_ms + min(self.call_ms_max, _DAY_MS), _HOUR_MS)
        yield at_ms + self.call_ms_max

    def _prices(self, at_ms: int, context: Mapping[str, str]) -> types.ModelPrice:
        """Those of an instant. They change at whole seconds only, and are slow to look up."""
        moment = at_ms // 1000, tuple(context.items())
        prices = self._known.get(moment)
        if prices is None:
            if len(self._known) >= _PRICES_REMEMBERED:
                self._known.clear()
            prices = self.info.get_prices(datetime.fromtimestamp(at_ms / 1000, UTC), context)
            if self.own is None:
                prices = with_hour_writes(in_region(prices, self.info.id, context), self.info.id)
            self._known[moment] = prices
        return prices

    def _prices_sound(self, at_ms: int, way: str) -> bool:
        """Whether tokens of sound have a price, on their way into the model or out of it."""
        prices = vars(self._prices(at_ms, {}))
        return self.source.id in _SOUND_IS_LIKE_TEXT or bool(prices.get(f"{way}_audio_mtok"))

    def _has_variant(self, context: Mapping[str, str], at_ms: int) -> bool:
        at = datetime.fromtimestamp(at_ms / 1000, UTC)
        return any(
            variant.when.items() <= context.items()
            and (variant.constraint is None or variant.constraint.active(at))
            for variant in self.info.price_variants or ()
        )


class PriceBook:
    """Finds the price of a model; bounded memory whatever names clients send."""

    def __init__(self, own: Sequence[OwnPrice], *, call_ms_max: int = _HOUR_MS) -> None:
        """`call_ms_max` is how long a call lasts at most."""
        self._call_ms_max = call_ms_max
        patterns = [(re.compile(translate(p.model.lower())), p) for p in own]
        self._own = tuple((pattern, p) for pattern, p in patterns if not p.fallback)
        self._fallback = tuple((pattern, p) for pattern, p in patterns if p.fallback)
        self._found = lru_cache(maxsize=_MODELS_REMEMBERED)(self._find)

    def find(self, provider: str, source_id: str, model: str) -> PricedModel | None:
        """The price of `model` at the configured `provider`; `source_id` names the public list."""
        return self._found(provider, source_id, model) if _MODEL_NAME.fullmatch(model) else None

    def own_models(self, provider: str) -> list[str]:
        """The names and globs that the config prices at a provider."""
        return [own.model for _, own in self._own + self._fallback if own.provider == provider]

    def settled_at(
        self, provider: str, source_id: str, requested: str, served: str | None
    ) -> PricedModel | None:
        """The price that a settlement uses: the served model's.

        A model that the config prices keeps that price under whatever name it is served (a
        snapshot's, or the one behind an alias) unless the config prices that name too. A served
        name without a price but a fallback is charged as the model that was asked for.
        """
        asked = self.find(provider, source_id, requested)
        if served is None or served == requested:
            return asked
        answered = self.find(provider, source_id, served)
        if answered is None or (asked and answered.own and answered.own.fallback):
            return asked
        own_of_asked = asked is not None and asked.own
        return asked if own_of_asked and not answered.own else answered

    def _find(self, provider: str, source_id: str, model: str) -> PricedModel | None:
        providers = data_snapshot.get_snapshot().providers
        source = data_snapshot.find_provider_by_id(providers, source_id)
        if source is None:
            raise LookupError(f"genai-prices has no provider {source_id!r}")
        public = source.find_model(model, all_providers=providers)
        own = _first(self._own, provider, model)
        # A model that the list knows by name only has no price: that is not a price of zero.
        if own is None and (public is None or not _is_priced(public)):
            own = _first(self._fallback, provider, model)
        if own is not None:
            return _own_model(own, model, source, public)
        if public is None or not _is_priced(public):
            return None
        window = context_window_max(public)
        tokens = output_tokens_max(model, window)
        cap_max = tokens if is_output_documented(model) else None
        return PricedModel(
            public,
            source,
            tokens,
            window,
            caps_bind=caps_bind(model, public.id),
            cap_max=cap_max,
            image_tokens_max=image_tokens_max(model),
            call_ms_max=self._call_ms_max,
        )


def _own_model(
    own: OwnPrice, model: str, source: types.Provider, public: types.ModelInfo | None
) -> PricedModel:
    window = own.context_window or context_window_max(public)
    rates = {
        "input_mtok": own.input,
        "output_mtok": own.output,
        "cache_read_mtok": own.cache_read,
        "cache_write_mtok": own.cache_write,
        "cache_write_1h_mtok": own.cache_write_1h,
    }
    info = types.ModelInfo(
        id=own.model,
        match=types.ClauseEquals(own.model),
        context_window=window,
        prices=types.ModelPrice(**{key: rate for key, rate in rates.items() if rate is not None}),
    )
    tokens = own.max_output_tokens or output_tokens_max(model, window)
    is_known = own.max_output_tokens is not None or is_output_documented(model)
    binds = caps_bind(model, *([public.id] if public else []))
    cap_max = tokens if is_known else None
    image = image_tokens_max(model)
    return PricedModel(info, source, tokens, window, own, binds, cap_max, image)


def _is_priced(info: types.ModelInfo) -> bool:
    """Whether anything has a price, at every date; what a call is billed for, `covers` asks."""
    entries = info.prices if isinstance(info.prices, list) else [info]
    return bool(entries) and all(
        any(value is not None for value in vars(entry.prices).values()) for entry in entries
    )


def _first(
    own: Sequence[tuple[re.Pattern[str], OwnPrice]], provider: str, model: str
) -> OwnPrice | None:
    return next(
        (p for pattern, p in own if p.provider == provider and pattern.match(model.lower())), None
    )


def _way_of_sound(kind: str) -> str | None:
    """`input` or `output`, of a kind that is tokens of sound."""
    dimensions = unit_data[kind]["dimensions"]
    if dimensions["family"] != "tokens" or dimensions.get("modality") != "audio":
        return None
    return str(dimensions["direction"])


def _prices_kind(prices: types.ModelPrice, kind: str) -> bool:
    if kind == "web_searches" and vars(prices).get("requests_kcount") is not None:
        return True  # sold by the call, however often it searches
    return vars(prices).get(unit_data[kind]["price_key"]) is not None
