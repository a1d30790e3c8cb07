"""Running statements: the open database, reads and writes over shards, schema changes, results."""
