"""Reads console transcripts out of Markdown, and compares printed output with real output.

A transcript is a fenced block of kind `console`: `$ ` starts a command, a trailing backslash or a
following `> ` line continues it, every other line is output it prints.

Output is compared exactly, except that JSON (a whole output, or one line of it such as an event
stream's `data: {...}`) is compared by value:
- keys in any order; integers, strings and booleans exact; floats within FLOAT_TOLERANCE;
- under a key of VOLATILE any value of the printed type passes, under "timings" any number.
compare() tells which real string each printed volatile one stood for: ids come back later.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

VOLATILE = frozenset(
    "id request_id created_at created chain births deaths".split()
    + "columns bytes written answered training held_out attempts drift locality teacher_recall".split()
)
FLOAT_TOLERANCE = 0.02
"""Relative and absolute: another CPU rounds matrix products otherwise."""

FENCE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DATA = "data: "


@dataclass(frozen=True)
class Step:
    command: str
    output: str


def steps(markdown: str) -> list[Step]:
    return [step for block in FENCE.findall(markdown) for step in _block_steps(block)]


def _block_steps(block: str) -> list[Step]:
    commands: list[tuple[list[str], list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            commands.append(([line[2:]], []))
            continue
        if not commands:
            raise ValueError(f"output before any command: {line!r}")
        command, output = commands[-1]
        if line.startswith("> ") and not output:
            command.append(line[2:])
        elif command[-1].endswith("\\") and not output:
            command.append(line)
        else:
            output.append(line)
    return [Step("\n".join(command), "\n".join(output).strip()) for command, output in commands]


def compare(printed: str, real: str) -> dict[str, str]:
    """Volatile strings {printed: real}; AssertionError names the first difference."""
    same: dict[str, str] = {}
    whole = _json(printed), _json(real)
    if None not in whole:
        _compare_values(*whole, "$", same)
        return same
    printed_lines, real_lines = printed.strip().splitlines(), real.strip().splitlines()
    for expected, found in zip(printed_lines, real_lines, strict=False):
        _compare_lines(expected, found, same)
    assert len(printed_lines) == len(real_lines), f"the output is another:\n{real}"
    return same


def _compare_lines(printed: str, real: str, same: dict[str, str]) -> None:
    values = _json(printed.removeprefix(DATA)), _json(real.removeprefix(DATA))
    if None not in values and printed.startswith(DATA) == real.startswith(DATA):
        _compare_values(*values, "$", same)
    else:
        assert real.rstrip() == printed.rstrip()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _compare_values(printed: Any, real: Any, where: str, same: dict[str, str], free: bool = False) -> None:
    """`free`: any number passes (timings)."""
    message = f"{where}: README prints {printed!r}, the server answers {real!r}"
    if _is_number(printed) and _is_number(real):
        assert free or _close(printed, real), message
        return
    assert type(printed) is type(real), message
    if isinstance(printed, dict):
        assert printed.keys() == real.keys(), message
        for key, value in printed.items():
            if key in VOLATILE and not isinstance(value, dict):
                assert type(value) is type(real[key]), message
                if isinstance(value, str) and value != real[key]:
                    same[value] = real[key]
            else:
                inside = f"{where}.{key}"
                _compare_values(value, real[key], inside, same, free or key == "timings")
    elif isinstance(printed, list):
        assert len(printed) == len(real), message
        for index, (left, right) in enumerate(zip(printed, real, strict=True)):
            _compare_values(left, right, f"{where}[{index}]", same, free)
    else:
        assert printed == real, message


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(printed: float, real: float) -> bool:
    if isinstance(printed, int) and isinstance(real, int):
        return printed == real
    return math.isclose(printed, real, rel_tol=FLOAT_TOLERANCE, abs_tol=FLOAT_TOLERANCE)
