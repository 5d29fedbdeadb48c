"""A whole gateway on one machine, for trying it out: a provider that asks for no password, and all processes."""
