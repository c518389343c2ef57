#!/bin/sh
# Passwords and keys of compose.yaml, made once: those that are there stay.
set -eu
cd "$(dirname "$0")"
# The folder is the owner's alone; a file in it is mounted by itself, and read by users of containers.
mkdir -p secrets
chmod 700 secrets
cd secrets
umask 022

made() { # NAME, then what is in it, on standard input
    if [ -e "$1" ]; then cat > /dev/null; else cat > ".$1" && mv ".$1" "$1"; fi
}
word() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

word | made database_password
printf 'postgresql://npt:%s@database/npt' "$(cat database_password)" | made database_url
word | made grafana_password
printf 'npt_%s%s' "$(word)" "$(word)" | made api_key
head -c 32 /dev/urandom | base64 | tr '+/' '-_' | made blob_keys
secret=$(word)
printf 'ROOT_ACCESS_KEY_ID=npt\nROOT_SECRET_ACCESS_KEY=%s\n' "$secret" | made object_store.env
secret=$(sed -n 's/^ROOT_SECRET_ACCESS_KEY=//p' object_store.env)
printf '[default]\naws_access_key_id = npt\naws_secret_access_key = %s\n' "$secret" | made object_store
echo "docker/compose/secrets: API key in api_key, Grafana's admin password in grafana_password"
