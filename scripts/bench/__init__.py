"""Benchmarks. They print figures with a reference measured in the same run; none is a test."""
