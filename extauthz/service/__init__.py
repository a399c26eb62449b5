"""The use cases: authorize a call, settle it, expire what was never settled."""
