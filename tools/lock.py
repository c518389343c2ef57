"""Writes requirements.lock and requirements-dev.lock from what is installed in this environment.

Each lock holds the packages that the project (for the second: with its `dev` extra) needs, at
their installed versions. Local suffixes such as torch's `+cpu` are dropped: which build of a
version is installed depends on the machine. Run through `make lock`.
"""

from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = "# Written by `make lock`. Install through `make`: it puts torch first.\n"
ROOT = Path(__file__).parents[1]


def closure(root: str) -> dict[str, str]:
    """Name -> version of what the requirement `root` pulls in here, the project itself excluded."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [Requirement(root)]
    while queue:
        wanted = queue.pop()
        name = canonicalize_name(wanted.name)
        for extra in ("", *sorted(wanted.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            found = distribution(name)
            versions[name] = found.version.partition("+")[0]
            for line in found.requires or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    queue.append(needed)
    versions.pop("npt", None)
    return versions


def write(path: Path, versions: dict[str, str]) -> None:
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    path.write_text(HEADER + "".join(lines))


if __name__ == "__main__":
    # hatchling is what pyproject.toml builds with: pinned too, so that installing fetches nothing
    write(ROOT / "requirements.lock", closure("npt") | closure("hatchling"))
    write(ROOT / "requirements-dev.lock", closure("npt[dev]"))
