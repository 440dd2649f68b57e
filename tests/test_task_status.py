import trio
import trio_typing

from engine.testing.dns import serve_dns


async def test_the_task_status_our_servers_are_given_is_one_of_trio_typings():
    given = []

    async def serve(task_status):
        given.append(task_status)
        await serve_dns({}, task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        nursery.cancel_scope.cancel()

    assert isinstance(given[0], trio_typing.TaskStatus)
