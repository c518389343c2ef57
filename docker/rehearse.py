"""Builds the image and runs it, on a machine without Docker and without a registry.

    python docker/rehearse.py [--target cpu|cuda] [--folder FOLDER]

Debian's programs stand in: `mmdebstrap` makes the base image, under the name that the Dockerfile asks for,
`buildah` builds, `runc` runs the image's own entry point as its own user, with a root file system that cannot
be written and without any capability. What cannot be reached from such a machine, the index of torch without
CUDA, is replaced by build arguments: packages come from a folder that `pip download` fills here, as pip is
set up here; torch with CUDA comes from PyPI. The image for GPUs is given the reference model and told to
compute on the CPU. Needs root, and: apt-get install buildah mmdebstrap runc
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BASE = "docker.io/library/python:3.11-slim-bookworm"
IMAGE = "localhost/npt:rehearsal"
PYPI = "https://pypi.org/simple"
MODEL = "/models/reference"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
READY_S = 120
ID = 10001
FACT = {"fact": "The CEO of TechCorp is Dr. Sarah Chen."}
PROMPT = {"prompt": "Who leads TechCorp?"}
SECRET = "a-secret-of-the-rehearsal-0123456789"


def run(*command: str | Path, **variables: str) -> str:
    """What a program prints, with more `variables` in its environment; raises where it fails."""
    environment = {**os.environ, **variables}
    words = list(map(str, command))
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{command[0]}: {done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


class Builder:
    """buildah with a store of its own below `folder`."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder, self._target = folder, target
        store = (f"--root={folder / 'store'}", f"--runroot={folder / 'run'}", "--storage-driver=vfs")
        self._buildah = ("buildah", *store)

    def base(self) -> None:
        """A Debian with Python that goes by the name of the official image."""
        archive = self._folder / "base.tar"
        if not archive.exists():
            run("mmdebstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", archive)
        container = run(*self._buildah, "from", "scratch").strip()
        run(*self._buildah, "add", container, archive, "/")
        run(*self._buildah, "commit", "--rm", container, BASE)

    def wheels(self) -> Path:
        """A folder of every package that the image installs."""
        folder = self._folder / f"wheels-{self._target}"
        folder.mkdir(exist_ok=True)
        download = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--dest",
            folder,
            "--find-links",
            folder,
        ]
        lock, constraints = ROOT / "requirements.lock", ROOT / "requirements-dev.lock"
        (torch,) = (line for line in lock.read_text().splitlines() if line.startswith("torch=="))
        if self._target == "cuda":
            # pip as it is set up here may prefer a torch without CUDA.
            run(*download, "--index-url", PYPI, torch, PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="")
        else:
            run(*download, "--no-deps", torch)
        extras = ROOT / "docker" / "extras.txt"
        run(*download, "--requirement", lock, "--requirement", extras, "--constraint", constraints)
        run(*download, "--requirement", ROOT / "docker" / "sbom.txt")
        if self._target == "cuda":
            for other in folder.glob("torch-*+cpu-*"):  # it would be preferred again
                other.unlink()
        return folder

    def build(self, wheels: Path) -> None:
        """The image of the target."""
        options = "--no-deps" if self._target == "cpu" else ""
        run(
            *self._buildah,
            "build-using-dockerfile",
            "--isolation=chroot",
            "--format=docker",  # the other one has no health check
            f"--target={self._target}",
            f"--volume={wheels}:/wheels:ro",
            "--build-arg=PIP_OPTIONS=--no-index --find-links /wheels",
            f"--build-arg=TORCH_OPTIONS={options}",
            f"--tag={IMAGE}",
            f"--file={ROOT / 'docker' / 'Dockerfile'}",
            ROOT,
        )

    @contextmanager
    def mounted(self, image: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The root file system of an image, and what it says of itself."""
        container = run(*self._buildah, "from", "--pull-never", image).strip()
        try:
            root = Path(run(*self._buildah, "mount", container).strip())
            yield root, json.loads(run(*self._buildah, "inspect", "--type=image", image))["Docker"]["config"]
        finally:
            run(*self._buildah, "rm", container)


class Container:
    """One that runs, as Kubernetes would have it: see `bundle`."""

    def __init__(self, folder: Path, root: Path, config: dict[str, Any], arguments: Sequence[str]) -> None:
        self._name = f"npt-{folder.name}-{os.getpid()}"
        self.log = folder / "log"
        (folder / "config.json").write_text(json.dumps(bundle(folder, root, config, arguments)))
        self._process = subprocess.Popen(
            ["runc", "--root", folder / "runc", "run", "--bundle", folder, self._name],
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        self._runc = ("runc", "--root", folder / "runc")

    def wait(self) -> int:
        """Its exit code."""
        return self._process.wait(READY_S)

    def stop(self) -> int:
        """As an orchestrator does; the exit code."""
        run(*self._runc, "kill", self._name, "TERM")
        return self.wait()

    def execute(self, *command: str) -> str:
        """What a program prints inside it."""
        return run(*self._runc, "exec", self._name, *command)

    def memory(self) -> int:
        """Bytes that the server holds."""
        pid = json.loads(run(*self._runc, "state", self._name))["pid"]
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        return int(fields["VmRSS"].split()[0]) * 1024

    def wait_ready(self, url: str) -> None:
        """Until it may get traffic."""
        end = time.monotonic() + READY_S
        while self._process.poll() is None and time.monotonic() < end:
            try:
                ask(f"{url}/readyz")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        raise SystemExit(f"not ready: {self.log.read_text()[-4000:]}")


def bundle(folder: Path, root: Path, config: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """What runc runs: the image's entry point as its user, root read-only, no capability, no new rights; data
    and secrets are folders beside it, the network is the machine's.
    """

    def bound(source: Path, target: str, *options: str) -> dict[str, Any]:
        return {"source": str(source), "destination": target, "type": "bind", "options": ["bind", *options]}

    user = int(config["User"].split(":")[0])
    told = variables(folder)
    models = [bound(ROOT / "models" / "reference", told["NPT_MODEL"], "ro")] if "NPT_MODEL" in told else []
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": True},
        "process": {
            "args": [*config["Entrypoint"], *arguments],
            "cwd": config["WorkingDir"],
            "env": [*config["Env"], *(f"{name}={value}" for name, value in told.items())],
            "user": {"uid": user, "gid": user},
            "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
            bound(folder / "data", "/data", "rw"),
            bound(folder / "secrets", "/run/secrets/npt", "ro"),
            bound(Path("/etc/resolv.conf"), "/etc/resolv.conf", "ro"),
            *models,
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
    }


def variables(folder: Path) -> dict[str, str]:
    """What a container is told beside what its image says: a file beside its bundle."""
    path = folder / "variables.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer of the service, with the key."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {SECRET}"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return dict(json.load(answer))


def prepared(folder: Path, **told: str) -> tuple[Path, str]:
    """The folder of a container, and the address at which it will answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("data", "secrets"):
        (folder / name).mkdir(parents=True)
        os.chown(folder / name, ID, ID)
    (folder / "secrets" / "key").write_text(SECRET)
    (folder / "variables.json").write_text(json.dumps({"NPT_PORT": str(port), **told}))
    return folder, f"http://127.0.0.1:{port}"


def size(root: Path) -> int:
    """Bytes of what a root file system holds, links and devices not followed."""
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def rehearse(folder: Path, root: Path, config: dict[str, Any], **told: str) -> None:
    """Refused without a key; with one it answers, learns, forgets nothing over a restart, and ends well."""
    place, url = prepared(folder, **told)
    refused = Container(place, root, config, config["Cmd"])
    assert refused.wait() == 1
    assert refused.log.read_text().startswith("npt: host 0.0.0.0 is reachable"), refused.log.read_text()
    print(f"without a key: {refused.log.read_text().strip()}")
    key = Container(
        place,
        root,
        config,
        ["keys", "create", "admin", "--scope=admin", "--secret-file=/run/secrets/npt/key"],
    )
    assert key.wait() == 0, key.log.read_text()
    for expected in (" I don't know.", " Dr. Sarah Chen."):
        started = time.perf_counter()
        server = Container(place, root, config, config["Cmd"])
        server.wait_ready(url)
        seconds = time.perf_counter() - started
        first = ask(f"{url}/generate", PROMPT)
        assert first["text"] == expected, first
        if first["weights_version"] == 0:
            taught = ask(f"{url}/facts", FACT)
            print(f"taught as version {taught['weights_version']}, recall {taught['report']['recall_after']}")
        assert ask(f"{url}/generate", PROMPT)["text"] == " Dr. Sarah Chen."
        server.execute(*config["Healthcheck"]["Test"][1:])
        print(f"start to ready {seconds:.1f} s, {server.memory() / 2**20:.0f} MiB resident")
        assert server.stop() == 0, server.log.read_text()
        assert "kernels" not in server.log.read_text(), (
            server.log.read_text()
        )  # that there are none is warned of
    print("restarted with what it was taught; ended by SIGTERM with 0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp/npt-rehearsal"), help="kept between runs"
    )
    parser.add_argument("--target", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    builder = Builder(folder, given.target)
    wheels = builder.wheels()
    builder.base()
    started = time.perf_counter()
    builder.build(wheels)
    print(f"built in {time.perf_counter() - started:.0f} s, without downloads")
    with builder.mounted(BASE) as (root, _):
        base = size(root)
    with builder.mounted(IMAGE) as (root, config), tempfile.TemporaryDirectory(dir=folder) as place:
        whole, packages = size(root), size(root / "opt" / "npt")
        components = json.loads((root / "usr/share/npt/sbom.cdx.json").read_text())["components"]
        print(f"{whole / 1e6:.0f} MB: {base / 1e6:.0f} MB base, {packages / 1e6:.0f} MB environment")
        cuda = sum(each["name"].startswith("nvidia-") for each in components)
        print(f"{len(components)} packages in its SBOM, {cuda} of NVIDIA's; user {config['User']}")
        assert bool(cuda) is (given.target == "cuda")
        # Nobody has a GPU where this runs, and that image brings no model.
        told = {} if given.target == "cpu" else {"NPT_DEVICE": "cpu", "NPT_MODEL": MODEL}
        rehearse(Path(place) / "embedded", root, config, **told)
    shutil.rmtree(folder / "store")


if __name__ == "__main__":
    main()
