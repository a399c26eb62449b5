"""A provider to spend against: OpenAI's and Anthropic's HTTP APIs, with a bill of its own.

The sandbox counts tokens and money by its own code and its own price table, and imports nothing
else of extauthz, so that a ledger which agrees with its bill to the nano-USD agrees with somebody
else. `python -m extauthz.sandbox` serves it; `start_sandbox` does so from a test or the demo.
"""

from extauthz.sandbox.client import Sandbox, SandboxClient, SandboxError, start_sandbox

__all__ = ["Sandbox", "SandboxClient", "SandboxError", "start_sandbox"]
