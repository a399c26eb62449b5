"""Where the ledger is kept: `base.LedgerStore`, in memory or in Redis and Valkey."""
