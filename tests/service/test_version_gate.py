import asyncio
import threading

from service.version_gate import VersionGate


class Counter:
    version = 0


async def test_reached_version_does_not_wait() -> None:
    assert await VersionGate(lambda: 3).wait_for(3, 0)


async def test_version_that_does_not_come_is_given_up() -> None:
    assert not await VersionGate(lambda: 3).wait_for(4, 0)


async def test_waiters_are_woken_from_another_thread() -> None:
    counter = Counter()
    gate = VersionGate(lambda: counter.version)
    waiting = [asyncio.create_task(gate.wait_for(version, 60)) for version in (1, 2)]
    await asyncio.sleep(0)

    def publish() -> None:
        for version in (1, 2):
            counter.version = version
            gate.announce()

    threading.Thread(target=publish).start()
    assert await asyncio.gather(*waiting) == [True, True]


def test_a_loop_that_is_gone_does_not_disturb_an_announcement() -> None:
    gate = VersionGate(lambda: 0)
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(gate.wait_for(1, 60))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gate.announce()
    assert not waiting.done()
