"""Everything that owns a process: the command line, the plan, the Ray actors, the ledger."""
