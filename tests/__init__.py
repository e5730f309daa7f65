"""Tests of Cortex Hub: real Postgres, real channels, real files."""
