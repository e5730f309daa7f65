"""Erasure: of users and tenants, from all tables and views at once; see docs/decisions.md."""
