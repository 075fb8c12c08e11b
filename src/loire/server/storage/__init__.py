"""What a server keeps on the disk: one database, and files beside it."""
