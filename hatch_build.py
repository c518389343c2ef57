"""Compiles the engine's kernels when the project is installed or built, if there is a C compiler.

Without one the engine computes with torch's own operations, and says so. `CC` names the compiler.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("npt_core", "native")
FLAGS = "-O3 -std=gnu11 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fopenmp -fPIC -Wall -Wextra"
UNITS = {
    "x86_64": {
        "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512",
        "avx2": "-mavx2 -mfma",
        "generic": "",
    },
    "aarch64": {"generic": ""},
}
"""Options for each vector unit, by machine; `npt_core.native.library` chooses one."""


class Hook(BuildHookInterface):
    """`[tool.hatch.build.hooks.custom]` of pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and make of a wheel one for this platform."""
        source = Path(self.root) / FOLDER / "kernels.c"
        for old in source.parent.glob("kernels-*.so"):
            old.unlink()
        units = UNITS.get(platform.machine(), {}) if sys.platform == "linux" else {}
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        if compiler is None or not units:
            self.app.display_warning("no C compiler for Linux: the engine computes with torch's operations")
            return
        made = {source.with_name(f"kernels-{unit}.so"): flags for unit, flags in units.items()}
        try:
            for target, flags in made.items():
                compile_kernels(compiler, source, flags, target)
        except (OSError, subprocess.CalledProcessError) as error:
            # Such as a compiler without the C library's headers: slower is better than not installed.
            self.app.display_warning(f"no kernels, the engine computes with torch's operations: {error}")
            return
        build_data["artifacts"] += [str(target.relative_to(self.root)) for target in made]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"  # no part of Python is compiled in


def compile_kernels(compiler: str, source: Path, flags: str, target: Path) -> None:
    """`target` is replaced when it is whole: another process may have it loaded."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made, library = Path(folder, "kernels.o"), Path(folder, target.name)
        subprocess.run([compiler, *FLAGS.split(), *flags.split(), "-c", source, "-o", made], check=True)
        # Without -fopenmp: the names are those of the OpenMP that torch has loaded.
        subprocess.run([compiler, "-shared", made, "-o", library], check=True)
        library.replace(target)
