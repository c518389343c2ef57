"""Commands under `torchrun` or `accelerate launch`, which start them in several processes at once."""

import os


def processes() -> int:
    """How many there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))
