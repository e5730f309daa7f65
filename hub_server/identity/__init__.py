"""Who is it, what is allowed: tenants, users, configurations, credentials."""
