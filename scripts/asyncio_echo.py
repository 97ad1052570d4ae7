"""An echo client and an echo server on Python's asyncio.

    asyncio_echo.py client HOST PORT    sends 1 MiB, ends its half, and expects the same back
    asyncio_echo.py server              prints its address, and echoes until it is stopped
"""

import asyncio
import os
import sys

BYTES = 1 << 20


async def client(host, port):
    reader, writer = await asyncio.open_connection(host, port)
    sent = os.urandom(BYTES)

    async def send():
        for start in range(0, len(sent), 10_000):
            writer.write(sent[start : start + 10_000])
            await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    received = await reader.read()  # to the end of the stream
    await sending
    writer.close()
    await writer.wait_closed()
    if received != sent:
        sys.exit(f"sent {len(sent)} bytes, and {len(received)} others came back")


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

    def pause_writing(self):
        self.transport.pause_reading()

    def resume_writing(self):
        self.transport.resume_reading()


async def server():
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(Echo, "127.0.0.1", 0)
    print("listening on {}:{}".format(*listening.sockets[0].getsockname()), flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "client":
        asyncio.run(client(sys.argv[2], int(sys.argv[3])))
    else:
        asyncio.run(server())
