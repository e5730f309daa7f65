"""Background work of a hub process: ingestion, embedding of messages, purge of what is spent."""
