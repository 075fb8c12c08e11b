"""/v1/files and /v1/batches: files of requests, run when there is nothing more urgent to do."""
