"""Whole calls through Envoy: what is added to each, and how many there are in a second."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from bench import h2load, litellm
from bench.check_rate import baselines
from bench.check_request import CONTENT_TYPE, PATH, PROVIDER, body
from bench.envoys import running_envoy
from bench.measure import Figures, Sample, in_turn
from bench.product import KEY, Product

_PATH = f"/{PROVIDER}{PATH}"
HEADERS = {"content-type": CONTENT_TYPE, "authorization": f"Bearer {KEY}"}


@contextmanager
def targets(product: Product, upstream_port: int) -> Iterator[dict[str, str]]:
    """Envoy alone, before E1 and E1w, and the product: for each where to send a chat completion."""
    with ExitStack() as stack:
        alone, _ = stack.enter_context(running_envoy(upstream_port, None))
        found = {"Envoy alone": alone}
        sockets = stack.enter_context(baselines())
        for name in ("E1", "E1w"):
            found[name], _ = stack.enter_context(running_envoy(upstream_port, sockets[name][0]))
        yield {name: url + _PATH for name, url in {**found, "ours": product.egress}.items()}


def calls(
    url: str, connections: int, count: int, headers: Mapping[str, str] = HEADERS
) -> Callable[[], Sample]:
    """One round: so many calls over so many connections."""
    options = ["--h1", "-c", str(connections), "-t", "1"]

    def run() -> Sample:
        done = h2load.load(url, body(), headers, *options, count=count)
        return {
            "per_second": done.per_second,
            "p50_us": done.percentile_us(50),
            "p99_us": done.percentile_us(99),
        }

    return run


def latency(product: Product, upstream_port: int, rounds: int, count: int) -> Figures:
    """One call at a time."""
    with targets(product, upstream_port) as found:
        return in_turn({name: calls(url, 1, count) for name, url in found.items()}, rounds)


def sixteen(product: Product, upstream_port: int, rounds: int, count: int) -> Figures:
    """Sixteen at once; with LiteLLM where it is installed, of which fewer calls are enough."""
    with ExitStack() as stack:
        found = stack.enter_context(targets(product, upstream_port))
        contestants = {name: calls(url, 16, count) for name, url in found.items()}
        if litellm.is_there():
            url = stack.enter_context(litellm.running_litellm(upstream_port))
            few = max(64, count // 20)
            contestants["LiteLLM"] = calls(url, 16, few, litellm.HEADERS)
        return in_turn(contestants, rounds)
