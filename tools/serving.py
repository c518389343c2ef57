"""`npt serve` in a process of its own, for tools and benchmarks that look at it from outside."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(data: Path, model: str) -> Iterator[str]:
    """The URL of a server on a free port, once it is ready."""
    command = [sys.executable, "-m", "service.cli", "serve", "--model", model, "--port", "0"]
    with subprocess.Popen([*command, "--data", str(data)], stderr=subprocess.PIPE, text=True) as process:
        if process.stderr is None:
            raise RuntimeError("no standard error")
        log = []
        for line in process.stderr:
            log.append(line)
            if "Uvicorn running on" in line:
                break
        else:
            raise RuntimeError(f"the server did not start:\n{''.join(log)}")
        # Its log goes on, and would fill the pipe if nobody read it.
        reading = threading.Thread(target=process.stderr.read, daemon=True)
        reading.start()
        try:
            yield next(word for word in log[-1].replace('"', " ").split() if word.startswith("http://"))
        finally:
            process.terminate()
            reading.join()
