"""Background work of a hub process: ingestion and the purge of spent request ids."""
