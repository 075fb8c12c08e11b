"""The socket that `loire serve` listens on."""

import asyncio
import socket

from loire.server.host.run import bind


def test_answers_in_several_parts_do_not_wait_for_acknowledgements() -> None:
    """Nagle's algorithm would hold each piece of a stream back for up to 40 ms."""

    async def option_of_a_connection() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = bind("127.0.0.1", 0)
        async with await asyncio.start_server(on_connection, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            option = await accepted
            writer.close()
            await writer.wait_closed()
        return option

    assert asyncio.run(option_of_a_connection()) != 0
