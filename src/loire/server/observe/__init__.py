"""What is told of calls and requests: the log, metrics, traces, and what is asked later."""
