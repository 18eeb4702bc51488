"""Policies on recorded loads: replayed, compared, swept and evaluated, by one score."""
