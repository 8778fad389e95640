"""The peer in Python: grpcio.aio with redis-py's asyncio client, both at their defaults.

setup.sh generates dyndata.v1's modules into the directory that PYTHONPATH names.
"""

import argparse
import asyncio
import time

import grpc
import redis.asyncio
from dyndata.v1 import dyndata_pb2, dyndata_pb2_grpc

DEFAULT_TTL_MILLISECONDS = 60_000


def entry(id_, stored):
    if stored is None:
        return dyndata_pb2.Entry(id=id_)
    if stored.startswith(b"b:"):
        return dyndata_pb2.Entry(id=id_, bytes_value=stored[2:])
    if stored.startswith(b"s:"):
        return dyndata_pb2.Entry(id=id_, string_value=stored[2:].decode())
    return dyndata_pb2.Entry(id=id_, int_value=int(stored))


class DynData(dyndata_pb2_grpc.DynDataServicer):
    def __init__(self, client):
        self.client = client

    async def Mark(self, request, context):
        kind = request.WhichOneof("value")
        if kind is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "value missing")
        value = getattr(request, kind)
        if kind == "string_value":
            value = b"s:" + value.encode()
        elif kind == "bytes_value":
            value = b"b:" + value
        ttl = request.ttl.ToMilliseconds() if request.HasField("ttl") else DEFAULT_TTL_MILLISECONDS
        await self.client.set(f"dyn_data/{request.id}", value, px=ttl)
        response = dyndata_pb2.MarkResponse()
        response.expire_time.FromMilliseconds(time.time_ns() // 1_000_000 + ttl)
        return response

    async def Get(self, request, context):
        stored = await self.client.get(f"dyn_data/{request.id}")
        return dyndata_pb2.GetResponse(entry=entry(request.id, stored))

    async def BatchGet(self, request, context):
        stored = await self.client.mget([f"dyn_data/{id_}" for id_ in request.ids])
        return dyndata_pb2.BatchGetResponse(entries=map(entry, request.ids, stored))


async def serve(listen, redis_url):
    server = grpc.aio.server()
    dyndata_pb2_grpc.add_DynDataServicer_to_server(DynData(redis.asyncio.from_url(redis_url)), server)
    server.add_insecure_port(listen)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--redis-url", required=True)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.listen, arguments.redis_url))
