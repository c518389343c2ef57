#!/bin/sh
# tools/venv.sh VENV LOCK: creates VENV where needed and installs torch, LOCK and this project.
# PYTHON=... chooses the interpreter; TORCH_CPU_INDEX=... the index of CPU-only wheels.
set -eu
venv=$1
lock=$2
cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

# Prints the first interpreter of at least 3.11 that can make a virtual environment.
choose_python() {
    found=
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
        found=$candidate
        if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    if [ -n "$found" ]; then
        echo "error: $found has no venv module; on Debian: apt install python3-venv" >&2
    else
        echo "error: Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3" >&2
    fi
    exit 1
}

# On Linux the default index's torch carries CUDA, several GB. Without an NVIDIA driver the CPU
# build is wanted: offered both, pip prefers 2.13.0+cpu to 2.13.0, because a local version sorts
# higher. An unreachable CPU index costs a warning, and the default index alone decides.
# --no-deps, so that only torch itself is ever looked up there: its dependencies are in LOCK.
install_torch() {
    torch=$(grep '^torch==' "$lock")
    if "$venv/bin/python" -c 'import importlib.metadata as m, sys
sys.exit("torch==" + m.version("torch").split("+")[0] != sys.argv[1])' "$torch" 2>/dev/null; then
        return
    fi
    echo "installing $torch"
    if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
        pip install --no-compile --no-deps --retries 1 --timeout 20 --extra-index-url "$cpu_index" "$torch" &&
            return
    fi
    pip install --no-compile --no-deps "$torch"
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(choose_python)
    echo "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
# Seconds that save minutes: the pip of an older Python unpacks at half the speed.
pip install --quiet --upgrade 'pip>=26'
install_torch
echo "installing $lock"
# LOCK names all that is needed, so nothing is looked up (--no-deps). Byte code is made on all cores, which
# pip does on one; files that are templates or of another Python cannot be compiled, nor need they be.
pip install --quiet --no-compile --no-deps --requirement "$lock"
pip install --quiet --no-compile --no-deps --no-build-isolation --editable .
"$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" || true
