"""`python -m extauthz.sandbox`: serve the sandbox provider until SIGTERM."""

import argparse
import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from extauthz.sandbox.app import (
    DEFAULT_ANTHROPIC_KEY,
    DEFAULT_OPENAI_KEY,
    create_app,
    runner_options,
)

new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with suppress(ImportError):  # it is for speed only, and not everywhere
    from uvloop import new_event_loop


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m extauthz.sandbox", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--ready-file", type=Path, help="gets the URL once requests are served")
    parser.add_argument(
        "--openai-key",
        default=os.environ.get("SANDBOX_OPENAI_KEY", DEFAULT_OPENAI_KEY),
        help="the credential to accept (SANDBOX_OPENAI_KEY)",
    )
    parser.add_argument(
        "--anthropic-key",
        default=os.environ.get("SANDBOX_ANTHROPIC_KEY", DEFAULT_ANTHROPIC_KEY),
        help="the credential to accept (SANDBOX_ANTHROPIC_KEY)",
    )
    parser.add_argument(
        "--log-header",
        action="append",
        default=["x-*"],
        metavar="PATTERN",
        help="record the values of these request headers too; never those with a credential",
    )
    arguments = parser.parse_args()
    app = create_app(
        openai_key=arguments.openai_key,
        anthropic_key=arguments.anthropic_key,
        log_headers=arguments.log_header,
    )
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(app, arguments.host, arguments.port, arguments.ready_file))


async def _serve(app: web.Application, host: str, port: int, ready_file: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, **runner_options)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
        bound_host, bound_port = runner.addresses[0][:2]
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        url = f"http://{shown}:{bound_port}"
        print(f"listening on {url}", flush=True)  # noqa: T201 - the promise to whoever started us
        if ready_file is not None:
            # Renamed into place, so that a reader never sees half of the URL.
            draft = ready_file.with_name(f"{ready_file.name}.draft")
            draft.write_text(url)
            draft.replace(ready_file)
        await stop.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    main()
