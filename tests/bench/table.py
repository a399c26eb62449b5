"""What of the figures is shown, beside its goal."""

from dataclasses import dataclass

from bench.bodies import added_cpu_us_per_event
from bench.measure import Figure, Figures
from bench.scale import AGENTS, RESERVATIONS
from bench.upstream import EVENTS


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    what: str
    found: str
    goal: str = ""


def rate_lines(found: Figures) -> list[Line]:
    """Checks of one process."""
    rate = {name: figures["per_second"] for name, figures in found.items()}
    cpu = {name: figures["cpu_us"] for name, figures in found.items()}
    each = [
        Line(f"{name}: Checks a second, CPU each", f"{rate[name].text(digits=0)}, {_us(cpu[name])}")
        for name in found
    ]
    return [
        *each,
        Line("ours: CPU of the store for each Check", _us(found["ours"]["store_cpu_us"])),
        Line("throughput, ours / E1", rate["ours"].over(rate["E1"]).text(), ">= 0.75"),
        Line("throughput, ours / E1w", rate["ours"].over(rate["E1w"]).text()),
        Line("CPU of a Check, ours / E1", cpu["ours"].over(cpu["E1"]).text()),
    ]


def latency_lines(found: Figures) -> list[Line]:
    """What is added to a call."""
    lines = []
    for percent, goal in (("p50_us", "<= 1.25 x E1"), ("p99_us", "<= 1.5 x E1")):
        alone = found["Envoy alone"][percent]
        lines.append(Line(f"{percent[:3]} of Envoy alone", _us(alone)))
        for name in ("E1", "E1w", "ours"):
            added = found[name][percent].minus(alone)
            lines.append(
                Line(f"{percent[:3]} added by {name}", _us(added), goal if name == "ours" else "")
            )
    return lines


def sixteen_lines(found: Figures) -> list[Line]:
    """Whole calls at sixteen connections."""
    rate = {name: figures["per_second"] for name, figures in found.items()}
    lines = [
        Line(f"requests/s at 16 connections, {name}", figure.text(digits=0))
        for name, figure in rate.items()
    ]
    if "LiteLLM" in rate:
        ratio = rate["ours"].over(rate["LiteLLM"])
        return [*lines, Line("requests/s, ours / LiteLLM", ratio.text(digits=1), ">= 25")]
    return [*lines, Line("LiteLLM", "not installed: see bench/litellm.py")]


def start_lines(found: Figures) -> list[Line]:
    """How long a start takes."""
    return [Line("`extauthz up` to ready", found["up"]["seconds"].text(" s"), "< 2 s")]


def _us(figure: Figure) -> str:
    return figure.text(" us", 0)


def scale_lines(found: Figures) -> list[Line]:
    """Many of everything against one."""
    rate = {name: figures["per_second"] for name, figures in found.items()}
    cpu = {name: figures["cpu_us"] for name, figures in found.items()}
    lines = []
    for name, many, goal in (
        ("agents", f"{AGENTS:,} agents", ">= 0.9"),
        ("reservations", f"{RESERVATIONS:,} open reservations", ">= 0.9"),
        ("8 budgets", "8 budgets", ">= 0.75"),
    ):
        ratio = f"{rate[name].over(rate['one']).text()}, CPU {cpu[name].over(cpu['one']).text()}"
        lines.append(Line(f"throughput with {many} / with few", ratio, goal))
    grown = found["reservations"]
    memory = {
        "service: memory of an agent": found["agents"]["service_bytes"],
        "service: memory of an open reservation": grown["service_bytes"],
        "store: memory of an open reservation": grown["store_bytes"],
    }
    return [*lines, *(Line(what, figure.text(" B", 0)) for what, figure in memory.items())]


def streams_lines(found: Figures) -> list[Line]:
    """Long streams through the whole chain."""
    lines = []
    for kind, how in (("stream", "one by one"), ("coalesced", "by the hundred")):
        ours, alone = found[f"{kind}, ours"], found[f"{kind}, Envoy alone"]
        ratio = ours["per_second"].over(alone["per_second"])
        goal = ">= 0.85" if kind == "stream" else ""
        lines.append(Line(f"{EVENTS:,} events {how}, ours / Envoy alone", ratio.text(), goal))
        added = f"{added_cpu_us_per_event(found, kind):.2f} us"
        goal = "<= 1 us" if kind == "coalesced" else ""
        lines.append(Line(f"events {how}: CPU of Envoy added to each", added, goal))
    return lines


def answers_lines(found: Figures) -> list[Line]:
    """Large answers."""
    lines = []
    for kind, goal in (("plain", 2), ("escaped", 4), ("logprobs", 15)):
        ours, alone = found[f"{kind}, ours"], found[f"{kind}, Envoy alone"]
        added = ours["envoy_cpu_ms"].minus(alone["envoy_cpu_ms"])
        lines.append(Line(f"2 MB of JSON, {kind}: CPU added", added.text(" ms"), f"<= {goal} ms"))
    return lines


def requests_lines(found: Figures) -> list[Line]:
    """Large prompts."""
    return [
        Line(
            f"request of {name}: p50, CPU and memory of the service",
            f"{figures['p50_ms'].text(' ms', 0)}, {figures['cpu_ms'].text(' ms', 1)}, "
            f"{max(figures['service_bytes'].rounds) / 1e6:.0f} MB, "
            f"{figures['answered'].median:.0%} answered",
        )
        for name, figures in found.items()
    ]


def settlements_lines(found: Figures) -> list[Line]:
    """Whether they keep up."""
    return [
        Line("calls/s, and the last one settled after", found["ours"]["per_second"].text(digits=0)),
        Line("", found["ours"]["seconds"].text(" s")),
    ]
