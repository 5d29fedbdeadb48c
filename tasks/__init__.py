"""The law tasks: thin glue between law and the library."""
