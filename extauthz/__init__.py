"""Spend limits for AI agents, enforced in the network by Envoy.

Start reading in `ledger.py` (the rules of the money), then `service/` (authorize and settle),
then `servicers/` (how Envoy talks to it).
"""

__version__ = "0.1.0"
