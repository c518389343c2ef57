"""`--layers`, as a person writes it."""

from service.cli.failing import fail


def parse_layers(text: str) -> str | list[int]:
    """`all`, `upper_half`, or numbers with commas."""
    if text in ("all", "upper_half"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        fail(f"--layers {text!r} is neither all, upper_half nor numbers such as 2,3")
