"""The peer of `aios bench syscalls`: decodes a length-prefixed msgpack frame and sends it back. Nothing else."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from aios_kernel.syscalls import LlmChat


async def _serve(path: str) -> None:
    decoder, encoder = msgspec.msgpack.Decoder(LlmChat), msgspec.msgpack.Encoder()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "big")
                body = encoder.encode(decoder.decode(await reader.readexactly(size)))
                writer.write(len(body).to_bytes(4, "big") + body)
        except asyncio.IncompleteReadError:
            writer.close()

    async with await asyncio.start_unix_server(talk, path, backlog=1024) as server:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
