#!/bin/sh
# Dump both databases, and the folder of artifacts where MLTF_ARTIFACTS names one (an object store has versions of its
# own): a file has its final name only when it is whole, and a dump that cannot be listed is none.
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
if [ -n "${MLTF_ARTIFACTS:-}" ]; then
    # after the databases: all that a row names is there
    final="$folder/artifacts-$stamp.tar"
    tar --create --file "$final.tmp" --directory "$MLTF_ARTIFACTS" .
    mv "$final.tmp" "$final"
fi
# older ones go only after the new ones are there
find "$folder" -maxdepth 1 -type f \( -name '*-*Z.dump' -o -name '*-*Z.tar' -o -name '*.tmp' \) \
    -mtime "+${MLTF_KEEP_DAYS:-30}" -delete
