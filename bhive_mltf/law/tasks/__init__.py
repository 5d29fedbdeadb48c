"""B-Hive's task classes."""
