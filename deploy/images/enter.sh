#!/bin/sh
# Start of both images: libpq and the gateway take secrets only from files that nobody else can read, and a cluster
# mounts them with other modes. They are copied into memory here; no secret stands in the environment of the manifests.
set -eu
umask 077
private="${MLTF_PRIVATE:-/tmp/private}"
mkdir -p "$private/keys"
for path in "${MLTF_SECRETS:-/run/secrets/mltf}"/*; do
    [ -f "$path" ] || continue
    case "$path" in
        *.pem) cat "$path" > "$private/keys/${path##*/}" ;;
        *) cat "$path" > "$private/${path##*/}" ;;
    esac
done
if [ -f "$private/pgpass" ]; then
    export PGPASSFILE="$private/pgpass"
fi
# MLflow reads these two from its environment only
if [ -f "$private/flask_key" ]; then
    MLFLOW_FLASK_SERVER_SECRET_KEY="$(cat "$private/flask_key")"
    export MLFLOW_FLASK_SERVER_SECRET_KEY
fi
if [ -f "$private/admin_password" ]; then
    MLFLOW_AUTH_ADMIN_PASSWORD="$(cat "$private/admin_password")"
    export MLFLOW_AUTH_ADMIN_PASSWORD
fi
exec "$@"
