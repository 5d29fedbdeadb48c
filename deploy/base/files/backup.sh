#!/bin/sh
# Dump both databases: a dump has its final name only when it is whole, and one that cannot be listed is none.
set -eu
umask 077
folder="${MLTF_BACKUPS:-/backups}"
cat "${MLTF_SECRETS:-/run/secrets/mltf}/pgpass" > "${TMPDIR:-/tmp}/pgpass"
export PGPASSFILE="${TMPDIR:-/tmp}/pgpass"
stamp="$(date -u +%Y%m%dT%H%M%SZ)"
for database in mltf mlflow; do
    final="$folder/$database-$stamp.dump"
    pg_dump --format custom --file "$final.tmp" --dbname "$database"
    pg_restore --list "$final.tmp" > /dev/null
    mv "$final.tmp" "$final"
done
# older ones go only after both new ones are there
find "$folder" -maxdepth 1 -type f \( -name '*.dump' -o -name '*.dump.tmp' \) -mtime "+${MLTF_KEEP_DAYS:-30}" -delete
