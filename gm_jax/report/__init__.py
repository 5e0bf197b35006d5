"""Backtests, metrics and plots."""
