"""Run the embedded servers in a process of their own, for tests that kill it.

    serve.py DATA_DIR [LOOP]      LOOP is "asyncio" (the default) or "uvloop"

Prints one JSON line with the endpoints when ready, stops on SIGTERM.
"""

import asyncio
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import uvloop

from app.embedded import EmbeddedServers


async def serve(data_dir: Path) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with EmbeddedServers(data_dir, on_exit=lambda *_: None) as endpoints:
        sys.stdout.write(json.dumps(asdict(endpoints)) + "\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    run = uvloop.run if sys.argv[2:] == ["uvloop"] else asyncio.run
    run(serve(Path(sys.argv[1])))
