"""Run the embedded servers in a process of their own, for tests that kill it.

    serve.py DATA_DIR [LOOP]      LOOP is "asyncio" (the default) or "uvloop"

Prints one JSON line with the endpoints when ready, stops on SIGTERM, which it also gets when the process that started it ends.
"""

import asyncio
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import uvloop

from app.embedded import EmbeddedServers
from app.embedded.launch import PR_SET_PDEATHSIG, Kernel


async def serve(data_dir: Path) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with EmbeddedServers(data_dir, on_exit=lambda *_: None) as endpoints:
        sys.stdout.write(json.dumps(asdict(endpoints)) + "\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    Kernel().prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    run = uvloop.run if sys.argv[2:] == ["uvloop"] else asyncio.run
    run(serve(Path(sys.argv[1])))
