"""Takes out of an environment what a server never reads: `slim.py ENVIRONMENT`.

Headers, static libraries and tests of packages, pip and what builds packages. With torch for CUDA
headers stay: its compiler needs them.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("pip", "setuptools", "hatchling")
UNUSED = (*PACKAGES, *(f"{name}-*.dist-info" for name in PACKAGES), "torch/test")
"""With what tells of them: who asks which packages are there, a list of them say, is told of no others."""
WITHOUT_CUDA = ("torch/include", "torch/share", "torch/lib/*.a")
TESTS = ("*/tests", "*/*/tests", "*/*/*/tests")


def unused(packages: Path) -> Iterator[Path]:
    """Files and folders of `packages` that may go."""
    names = [*UNUSED, *TESTS]
    if not any(packages.glob("nvidia*")):
        names += WITHOUT_CUDA
    for name in names:
        yield from packages.glob(name)


def size(path: Path) -> int:
    """Of a file, or of all below a folder."""
    return sum(each.lstat().st_size for each in (path, *path.rglob("*")) if each.is_file())


def main(environment: Path) -> None:
    (packages,) = environment.glob("lib/python*/site-packages")
    before = size(packages)
    for path in list(unused(packages)):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
    sys.stdout.write(f"{before / 1e6:.0f} MB of packages, {size(packages) / 1e6:.0f} MB are left\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
