"""What a test leaves behind that only the garbage collector would find."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def no_garbage(*names: str) -> AsyncIterator[None]:
    """Collect nothing in the block; at its end no object of these classes may be left that was not there before."""
    gc.collect()
    before = _objects(names)  # held, so that no other gets the place of one
    there = {id(each) for each in before}
    gc.disable()
    try:
        yield
        for _ in range(100):
            left = [type(each).__name__ for each in _objects(names) if id(each) not in there]
            if not left:
                break
            await asyncio.sleep(0.01)
    finally:
        gc.enable()
    assert not left


def _objects(names: tuple[str, ...]) -> list[object]:
    return [each for each in gc.get_objects() if type(each).__name__ in names]
