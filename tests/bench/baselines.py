"""What the product is measured against: an ext_authz server that decides nothing.

E0 answers at once. E1 asks a store to run a script that does nothing, and then answers. The script
of E1w writes one field: with `appendfsync always` its answer waits for the disk, as ours must.
"""

import argparse
import asyncio
import signal
from typing import Any

import grpc
import redis.asyncio
import uvloop

from extauthz.pb import ext_authz_pb2
from extauthz.servicers.check import SERVICE

_NOTHING = "return ARGV[1]"
_WRITE = "redis.call('HINCRBY', KEYS[1], 'field', 1) return ARGV[1]"


async def serve(listen: str, store: str | None, text: str) -> None:
    """Answer every Check with yes, until SIGTERM."""
    client = redis.asyncio.Redis(unix_socket_path=store, max_connections=512) if store else None
    script = await client.script_load(text) if client else ""
    yes = ext_authz_pb2.CheckResponse(status=ext_authz_pb2.RpcStatus(code=0))
    yes.ok_response.SetInParent()

    async def check(_request: ext_authz_pb2.CheckRequest, _context: Any) -> Any:
        if client is not None:
            await client.evalsha(script, 1, "key", "word")
        return yes

    handler = grpc.unary_unary_rpc_method_handler(
        check,
        request_deserializer=ext_authz_pb2.CheckRequest.FromString,
        response_serializer=ext_authz_pb2.CheckResponse.SerializeToString,
    )
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 * 1024 * 1024)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Check": handler}),)
    )
    server.add_insecure_port(f"unix:{listen}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True, help="a unix socket")
    parser.add_argument("--store", help="the store's unix socket; without it: E0")
    parser.add_argument("--write", action="store_true", help="E1w")
    arguments = parser.parse_args()
    text = _WRITE if arguments.write else _NOTHING
    uvloop.run(serve(arguments.listen, arguments.store, text))
