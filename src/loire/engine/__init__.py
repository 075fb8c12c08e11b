"""The loop: schedule, execute, commit; and the client's side, which keeps the ledger."""
