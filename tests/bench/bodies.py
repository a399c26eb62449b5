"""Large bodies, long streams, and whether settlements keep up."""

import time
from collections.abc import Callable, Mapping

from bench import h2load
from bench.check_request import PATH, PROVIDER, body
from bench.envoys import running_envoy
from bench.measure import Figures, Sample, in_turn
from bench.processes import cpu_seconds, resident_bytes, until
from bench.product import Product
from bench.through_envoy import HEADERS, calls
from bench.upstream import EVENTS

_PATH = f"/{PROVIDER}{PATH}"
BODY_SIZES = {"1 MB": 1_000_000, "20 MB": 20_000_000}


def answers(
    product: Product, upstream_port: int, rounds: int, count: int, kinds: Mapping[str, bool]
) -> Figures:
    """For each kind of answer (and whether it is a stream): Envoy alone and the product, in turn.

    With the processor time that Envoy takes for one.
    """
    with running_envoy(upstream_port, None) as (alone, alone_pid):
        contestants = {}
        for kind, streams in kinds.items():
            for name, url, pid in (
                ("Envoy alone", alone, alone_pid),
                ("ours", product.egress, product.envoy),
            ):
                contestants[f"{kind}, {name}"] = _answer(url + _PATH, pid, kind, streams, count)
        return in_turn(contestants, rounds)


def _answer(url: str, pid: int, kind: str, streams: bool, count: int) -> Callable[[], Sample]:
    content = body(stream=True) if streams else body()
    headers = {**HEADERS, "x-bench": kind}

    def run() -> Sample:
        before = cpu_seconds(pid)
        done = h2load.load(url, content, headers, "--h1", "-c", "1", count=count)
        cpu_ms = (cpu_seconds(pid) - before) / count * 1e3
        return {"per_second": done.per_second, "envoy_cpu_ms": cpu_ms}

    return run


def streams(product: Product, upstream_port: int, rounds: int, count: int) -> Figures:
    """Ten thousand events, written one by one and by the hundred."""
    return answers(product, upstream_port, rounds, count, {"stream": True, "coalesced": True})


def json_answers(product: Product, upstream_port: int, rounds: int, count: int) -> Figures:
    """Two megabytes of JSON in three shapes."""
    kinds = dict.fromkeys(("plain", "escaped", "logprobs"), False)
    return answers(product, upstream_port, rounds, count, kinds)


def requests(product: Product, rounds: int, count: int) -> Figures:
    """Large prompts. One that cannot be read in 1.5 s is refused, as it is on a busy machine."""

    def sent(size: int) -> Callable[[], Sample]:
        content = body(messages=[{"role": "user", "content": "word " * (size // 5)}])

        def run() -> Sample:
            before = cpu_seconds(product.service)
            done = h2load.load(
                product.egress + _PATH,
                content,
                HEADERS,
                *("--h1", "-c", "1"),
                count=count,
                refusals_are_fine=True,
            )
            cpu_ms = (cpu_seconds(product.service) - before) / count * 1e3
            memory = resident_bytes(product.service)
            p50_ms = done.percentile_us(50) / 1e3
            answered = done.answered / count
            return {
                "p50_ms": p50_ms,
                "cpu_ms": cpu_ms,
                "service_bytes": memory,
                "answered": answered,
            }

        return run

    return in_turn({name: sent(size) for name, size in BODY_SIZES.items()}, rounds)


def settlements(product: Product, rounds: int, count: int) -> Figures:
    """How long after calls at full speed the last of them is settled."""
    load = calls(product.egress + _PATH, 16, count)

    def settled() -> float:
        return product.metric("extauthz_settlements_total", outcome="settled")

    def run() -> Sample:
        wanted = settled() + count
        done = load()
        ended = time.perf_counter()
        until(lambda: settled() >= wanted, "not every call is settled", 120)
        return {"per_second": done["per_second"], "seconds": time.perf_counter() - ended}

    return in_turn({"ours": run}, rounds)


def added_cpu_us_per_event(found: Figures, kind: str) -> float:
    """The processor time that Envoy takes for an event beyond what it takes without the product."""
    ours, alone = found[f"{kind}, ours"], found[f"{kind}, Envoy alone"]
    return ours["envoy_cpu_ms"].minus(alone["envoy_cpu_ms"]).median / EVENTS * 1e3
