"""Benchmarks of june, each beside the same work without june."""
