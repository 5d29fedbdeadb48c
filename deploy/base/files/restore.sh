#!/bin/sh
# Put both databases back, and the folder of artifacts where MLTF_ARTIFACTS names one: restore.sh [STAMP], of the newest
# backup without one. API, MLflow and worker are stopped before. What was there stays under another name.
set -eu
umask 077
folder="${MLTF_BACKUPS:-/backups}"
cat "${MLTF_SECRETS:-/run/secrets/mltf}/pgpass" > "${TMPDIR:-/tmp}/pgpass"
export PGPASSFILE="${TMPDIR:-/tmp}/pgpass"
now="before_$(date -u +%Y%m%dt%H%M%Sz)"

refuse() {
    echo "restore: $1" >&2
    exit 1
}
ask() {
    psql --quiet --tuples-only --no-align --no-psqlrc -v ON_ERROR_STOP=1 --dbname postgres --command "$1"
}

stamp="${1:-}"
if [ -z "$stamp" ]; then
    # the databases are dumped in this order: where there is the second, there is the first
    for dump in "$folder"/mlflow-*Z.dump; do
        stamp="$(basename "$dump" .dump)"
        stamp="${stamp#mlflow-}"
    done
fi
for database in mltf mlflow; do
    [ -f "$folder/$database-$stamp.dump" ] || refuse "there is no $folder/$database-$stamp.dump: name the time of a backup"
    pg_restore --list "$folder/$database-$stamp.dump" > /dev/null
done
[ -z "${MLTF_ARTIFACTS:-}" ] || [ -f "$folder/artifacts-$stamp.tar" ] || refuse "there is no $folder/artifacts-$stamp.tar"
users="$(ask "SELECT count(*) FROM pg_stat_activity WHERE datname IN ('mltf', 'mlflow')")"
[ "$users" = 0 ] || refuse "$users sessions use the databases: stop API, MLflow and worker first"

for database in mltf mlflow; do
    dropdb --if-exists "${database}_restoring"
    createdb --owner "$database" --template template0 "${database}_restoring"
    ask "REVOKE ALL ON DATABASE ${database}_restoring FROM PUBLIC"
    pg_restore --exit-on-error --dbname "${database}_restoring" "$folder/$database-$stamp.dump"
done
if [ -n "${MLTF_ARTIFACTS:-}" ]; then
    rm -rf "$MLTF_ARTIFACTS.restoring"
    mkdir "$MLTF_ARTIFACTS.restoring"
    tar --extract --file "$folder/artifacts-$stamp.tar" --directory "$MLTF_ARTIFACTS.restoring"
fi

# all of it is there: now the names change
for database in mltf mlflow; do
    if [ "$(ask "SELECT count(*) FROM pg_database WHERE datname = '$database'")" = 1 ]; then
        ask "ALTER DATABASE $database RENAME TO ${database}_$now"
    fi
    ask "ALTER DATABASE ${database}_restoring RENAME TO $database"
done
if [ -n "${MLTF_ARTIFACTS:-}" ]; then
    [ ! -e "$MLTF_ARTIFACTS" ] || mv "$MLTF_ARTIFACTS" "$MLTF_ARTIFACTS.$now"
    mv "$MLTF_ARTIFACTS.restoring" "$MLTF_ARTIFACTS"
fi
echo "restored the backup of $stamp"
