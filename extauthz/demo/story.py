"""The acts, one after the other, and the audit at the end."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.text import Text

from extauthz.demo.agents import (
    HANG_UPS,
    RUNAWAY_WORKERS,
    Agent,
    Tally,
    assist,
    come_without_key,
    hang_up,
    run_away,
    try_unpriced,
)
from extauthz.demo.stage import Interruption, Stage, StageError
from extauthz.demo.table import Screen, make_console, summary, verdict_lines
from extauthz.demo.verdict import AgentAccount, Books, audit
from extauthz.demo.watch import NO_KEY, Watcher, billed, egress_requests
from extauthz.money import format_usd

LIMITS = {"assistant": "2.00", "runaway": "3.00", "hangup": "1.00", "explorer": "1.00"}

_EXPECTED: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "runaway": (
        {"budget_exhausted": RUNAWAY_WORKERS},
        {"openai.RateLimitError": RUNAWAY_WORKERS},
    ),
    "explorer": ({"unpriced_model": 1}, {"openai.PermissionDeniedError": 1}),
    NO_KEY: ({"unknown_agent": 1}, {"openai.AuthenticationError": 1}),
}
"""By agent: what is denied for which reason, and what its SDK makes of it."""

_TICK_SECONDS = 0.1
_BILL_TICKS = 5
_ALL_SECONDS = 55.0
_SETTLE_SECONDS = 10.0


@dataclass(slots=True)
class Story:
    """One run of the demo, on a stage that is set."""

    stage: Stage
    screen: Screen
    interruption: Interruption
    agents: dict[str, Agent] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    watcher: Watcher = field(init=False)
    _ticks: int = 0

    def __post_init__(self) -> None:
        names = [*LIMITS, NO_KEY]
        self.watcher = Watcher(self.stage, names)
        for name in names:
            self.agents[name] = Agent(
                Tally(name),
                self.stage.openai_url,
                self.stage.anthropic_url,
                self.stage.keys.get(name, "no key"),
                self.stop,
            )

    def play(self) -> None:
        """All acts, until everything is settled."""
        self._assistant()
        self._runaway()
        self._hangup()
        self._refused()
        self._settle()

    def close(self) -> None:
        """Let the agents' threads end."""
        self.stop.set()
        for agent in self.agents.values():
            agent.close()

    def books(self) -> Books:
        """What the audit looks at; the sidecar has stopped, so its logs are complete."""
        self.watcher.read_log()
        return Books(
            accounts=[self._account(name) for name in self.agents],
            bill_total=self.stage.sandbox.total_nanousd(),
            open_reservations=self.watcher.open_reservations,
            egress_requests=egress_requests(self.stage),
            samples=self.watcher.samples,
        )

    def _assistant(self) -> None:
        self.screen.act(
            "A well-behaved agent",
            "The assistant asks OpenAI and Anthropic, in one piece and streaming; what a call "
            "can cost at most is held before it leaves, and what it did cost is settled when it "
            "ends.",
        )
        self.stage.sandbox.script(output_tokens=420, latency_ms=90, chunks=12, chunk_delay_ms=25)
        agent = self.agents["assistant"]
        self._watch(agent.run(lambda: assist(agent)), "assistant")
        answered = self.watcher.standing["assistant"].admitted
        self.screen.result(f"{agent.tally.calls} calls, {answered} answered, within its day.")

    def _runaway(self) -> None:
        agent = self.agents["runaway"]
        self.screen.act(
            "A runaway",
            f"A bot with a retry bug: {RUNAWAY_WORKERS} workers in loops without an end, each call "
            f"costs cents, nobody is watching. It may spend ${LIMITS['runaway']} a day.",
        )
        self.stage.sandbox.script(output_tokens=10**6, latency_ms=800, chunk_delay_ms=0)
        began = time.monotonic()
        workers = [lambda n=n: run_away(agent, n) for n in range(RUNAWAY_WORKERS)]
        self._watch(agent.run(*workers), "runaway")
        standing, raised = self.watcher.standing["runaway"], agent.tally.raised
        self.screen.result(
            f"Stopped after {time.monotonic() - began:.0f} s and {standing.admitted} calls, at "
            f"${format_usd(standing.spent)}: {_counts(raised)}, no loop is left."
        )
        self.stage.sandbox.script(output_tokens=420, latency_ms=90)
        other = self.agents["assistant"]
        self._watch(
            other.run(lambda: other.ask_openai("gpt-4.1", "And you, are you fine?", 600)),
            "assistant",
        )
        if not other.tally.raised:
            self.screen.result("The assistant has a budget of its own, so it is still answered.")

    def _hangup(self) -> None:
        self.screen.act(
            "An agent that hangs up",
            f"It leaves {HANG_UPS} streams half-way. The provider bills them in full, but its "
            "usage report never arrives; so they are charged at the most that they can have cost.",
        )
        self.stage.sandbox.script(output_tokens=10**6, chunks=16, chunk_delay_ms=80)
        agent = self.agents["hangup"]
        self._watch(agent.run(lambda: hang_up(agent)), "hangup")
        self.screen.result("What nobody can know is never taken for free.")

    def _refused(self) -> None:
        self.screen.act(
            "No key, no price",
            "One call comes without a virtual key, one asks for a model whose price nobody knows: "
            "what cannot be charged to anyone, or not in dollars, does not leave.",
        )
        nobody, explorer = self.agents[NO_KEY], self.agents["explorer"]
        threads = nobody.run(lambda: come_without_key(nobody))
        threads += explorer.run(lambda: try_unpriced(explorer))
        self._watch(threads, "explorer")
        for agent in (nobody, explorer):
            self.screen.result(f"{agent.name}: {_counts(agent.tally.raised)}.")

    def _settle(self) -> None:
        self.screen.say()
        self.screen.say("Everybody is done. Settling what is open, then comparing the books ...")
        self.stage.until(self.watcher.is_settled, _SETTLE_SECONDS, "the last settlement")
        self.watcher.look_at_bill()
        self.screen.show(self.watcher.standing, "")

    def _watch(self, threads: Sequence[threading.Thread], active: str) -> None:
        """Keep the table moving until an act is over."""
        while True:
            over = not any(thread.is_alive() for thread in threads)
            self.interruption.check()
            if self.screen.seconds > _ALL_SECONDS:
                raise StageError(f"demo: the act of '{active}' did not end in time")
            self.watcher.look()
            if over or self._ticks % _BILL_TICKS == 0:
                self.watcher.look_at_bill()
            self._ticks += 1
            self.screen.show(self.watcher.standing, active)
            if over:
                return
            for thread in threads:
                if thread.is_alive():
                    thread.join(_TICK_SECONDS)
                    break

    def _account(self, name: str) -> AgentAccount:
        standing, tally = self.watcher.standing[name], self.agents[name].tally
        whole, cut = billed(self.stage, name)
        denied, raised = _EXPECTED.get(name, ({}, {}))
        return AgentAccount(
            name=name,
            limit=standing.limit,
            spent=standing.spent,
            held=standing.held,
            peak=standing.peak,
            admitted=standing.admitted,
            denied=standing.denied,
            settled=standing.settled,
            smallest_refused=standing.smallest_refused,
            billed=whole,
            billed_cut=cut,
            calls=tally.calls,
            raised=tally.raised,
            expected_denied=denied,
            expected_raised=raised,
            must_reach_limit=name == "runaway",
        )


def tell(interruption: Interruption) -> int:
    """Play everything; 0 if the audit found nothing.

    Raises:
        Interrupted: a signal came.
        OperatorError: the stage could not be set, or an act did not end.
    """
    console = make_console()
    screen = Screen(console)
    console.print()
    screen.say("extauthz: no agent spends past its daily limit", style="bold")
    screen.say(
        "Real Envoy, real Valkey, the official SDKs with nothing changed but base_url and key. "
        "Only the LLM provider is a sandbox; it keeps a bill of its own."
    )
    screen.say("Starting the sandbox, then 'extauthz up' ...", style="dim")
    with Stage(LIMITS, interruption) as stage:
        screen.say(f"Ready after {screen.seconds:.1f} s: agents call {stage.egress}.", style="dim")
        story = Story(stage, screen, interruption)
        try:
            with screen:
                story.play()
                story.close()
                stage.stop_sidecar()
        finally:
            story.close()
        interruption.check()
        books = story.books()
    checks = audit(books)
    passed = all(check.passed for check in checks)
    console.print()
    console.print(summary(books.accounts))
    console.print(Text("USD, exact. The difference is spent less the provider's bill.", "dim"))
    console.print()
    console.print(verdict_lines(checks, console.width))
    console.print()
    if not passed:
        screen.say("Something does not add up, see above.", style="bold red")
        return 1
    screen.say(f"Everything adds up, after {screen.seconds:.0f} s. Next, for your own agents:")
    screen.say("  extauthz init   writes a config and makes a first virtual key")
    screen.say("  extauthz up     runs this sidecar in front of your providers")
    return 0


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items())) or "no error"
