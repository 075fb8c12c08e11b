"""Who may call, how much of it, and what may wait."""
