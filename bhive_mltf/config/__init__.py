"""B-Hive config files, read into frozen, validated objects."""
