"""For operators: health, metrics, the calls that run, and the engine's steps as they happen."""
