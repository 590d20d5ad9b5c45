"""Benchmarks: what june's figures are, and the same work without june beside it."""
