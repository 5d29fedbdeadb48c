"""Who calls, and what they may do: tokens of the sign-on provider, roles, and the gateway's own tokens."""
