"""Through a real channel to a real Postgres."""
