"""The child process of `body_reader`: reads bodies from stdin, answers facts on stdout.

Its memory is bounded before anything is parsed: by counting what a parser would have to build, and
by the process's own limit.
"""

import contextlib
import os
import pickle
import resource
import struct
import sys
from dataclasses import replace
from typing import BinaryIO

from extauthz.errors import where
from extauthz.providers import ADAPTERS
from extauthz.providers.base import Request, RequestError, RequestFacts
from extauthz.reasons import Reason

VALUES_MAX = 3_000_000
"""Most values (about as many as commas and opening brackets) in one body."""

READY = b"!"
"""What the child says first, once all that it needs is imported."""

_MEMORY_BYTES_MAX = 2 * 1024**3
_HEADER = struct.Struct("!II")


def read(api: str, endpoint: str, request: Request) -> RequestFacts | RequestError:
    """The facts of a request, or why it is refused."""
    body, found = request.body, ADAPTERS[api].endpoint(endpoint)
    is_json = found is not None and not found.reads_form
    if is_json and body.count(b",") + body.count(b"[") + body.count(b"{") > VALUES_MAX:
        return RequestError(
            Reason.BODY_TOO_LARGE,
            f"the request body holds more than {VALUES_MAX} values: send a smaller one",
        )
    try:
        return ADAPTERS[api].read_request(endpoint, request)
    except RequestError as error:
        return error
    except MemoryError:
        return RequestError(
            Reason.BODY_TOO_LARGE, "the request body is too complex to be read: send a simpler one"
        )
    except Exception as error:  # noqa: BLE001 - its text, which may quote the body, is not printed
        sys.stderr.write(f"a body could not be read: an error of this program: {where(error)}\n")
        return RequestError(
            Reason.SERVICE_UNAVAILABLE, "the budget service met an error of its own: try again"
        )


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Say that it is ready, then answer until the parent closes the pipe."""
    sink.write(READY)
    sink.flush()
    while header := source.read(_HEADER.size):
        call_size, body_size = _HEADER.unpack(header)
        api, endpoint, head = pickle.loads(source.read(call_size))  # noqa: S301 - our own parent's
        request = replace(head, body=source.read(body_size))
        answer = pickle.dumps(read(api, endpoint, request))
        sink.write(len(answer).to_bytes(4, "big") + answer)
        sink.flush()


def main() -> None:
    """Entry point of `python -m extauthz.servicers.body_worker`."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES_MAX, _MEMORY_BYTES_MAX))
    os.nice(5)  # the Checks of small bodies come first
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
