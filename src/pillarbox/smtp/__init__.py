"""The protocol, without input or output: nothing in here imports asyncio, socket or ssl."""
