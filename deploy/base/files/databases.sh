#!/bin/sh
# Run once by the image of PostgreSQL, on an empty data folder: two databases, two roles, neither reads the other's.
set -eu
psql --quiet --no-psqlrc -v ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\set mltf_password `cat "$MLTF_SECRETS/mltf_password"`
\set mlflow_password `cat "$MLTF_SECRETS/mlflow_password"`
CREATE ROLE mltf LOGIN PASSWORD :'mltf_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE mltf OWNER mltf;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE ALL ON DATABASE mltf FROM PUBLIC;
REVOKE ALL ON DATABASE mlflow FROM PUBLIC;
SQL
