"""Capping a call's output: between what it may be capped, and where the cap is written.

The cap itself is chosen by the store, in the step that holds its amounts: only there is the room
known. What is written into the body is one number, and never more than the client asked for.
"""

from collections.abc import Sequence
from dataclasses import replace

from extauthz.ledger import SHARE_WHOLE, CapRange
from extauthz.policies import Agent, Budget, OutputCaps
from extauthz.pricing import Estimate, RateLimits
from extauthz.providers.base import Edit, RequestFacts


def default_cap(
    caps: OutputCaps, facts: RequestFacts, names: Sequence[str], output_tokens_max: int
) -> int | None:
    """The cap of a call that names none; None: it named one, takes none, or there is no default.

    It leaves room to answer beside what the client lets the model think, and is no more than
    any of the models by these names answers.
    """
    default = caps.default_for(*names)
    if facts.output_tokens_cap is not None or facts.cap_slot is None or default is None:
        return None
    if facts.thinking_tokens:
        default = max(default, facts.thinking_tokens + caps.least)
    return min(default, output_tokens_max)


def cap_range(
    agent: Agent,
    budgets: Sequence[Budget],
    facts: RequestFacts,
    estimate: Estimate,
    cap_max: int | None,
) -> CapRange | None:
    """Between what a call may be capped; None: it must fit as it is.

    A shadow budget shortens nobody's answers. A call whose worst case is beyond what a store counts
    under a cap has to fit as it is too. Where neither the client nor `cap_max` tells which cap the
    model takes, none above what is comfortable is written: the provider could refuse it.
    """
    if facts.cap_slot is None or not any(budget.fit and not budget.shadow for budget in budgets):
        return None
    most = estimate.cap
    slopes = (estimate.nanousd_under, estimate.tokens_under)
    if most < 1 or not all(slope.is_exact_up_to(most) for slope in slopes):
        return None
    caps = agent.output_caps
    least = min(most, caps.least + facts.thinking_tokens)
    is_named = facts.output_tokens_cap is not None
    return CapRange(
        most,
        least,
        caps.comfort,
        # What the client names itself is what it needs; the share is for those who named nothing.
        SHARE_WHOLE if is_named else caps.share_permille,
        estimate.nanousd_under,
        most if is_named else max(least, min(most, cap_max or caps.comfort)),
    )


def written_cap(
    granted: int | None, default: int | None, facts: RequestFacts, estimate: Estimate
) -> int | None:
    """The cap that has to be written into the body; None: it stands as it is."""
    if granted is not None and granted < estimate.cap:
        return granted
    return None if facts.cap_slot is None else default


def with_price_limit(facts: RequestFacts, limits: RateLimits) -> RequestFacts:
    """Write the rates that were reckoned with as the highest that the provider may take."""
    assert facts.price_slot is not None, "there is no place for it"
    # No list has a price by the picture, so whoever has one may not answer where some go in.
    pictures = ',"image":0' if facts.images else ""
    highest = f'{{"prompt":{limits.input:f},"completion":{limits.output:f},"request":0{pictures}}}'
    return replace(facts, edits=(*facts.edits, facts.price_slot.edit(highest)))


def edits_with(facts: RequestFacts, cap: int | None) -> tuple[Edit, ...]:
    """Every edit of the body, in order."""
    edits = facts.edits
    if cap is not None:
        assert facts.cap_slot is not None, "a call without a slot is not capped"
        slots = (facts.cap_slot, *facts.other_caps)
        edits = (*edits, *(slot.edit(cap) for slot in slots))
    return tuple(sorted(edits, key=lambda edit: edit.offset))
