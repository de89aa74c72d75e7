"""Measurements, as ratios against the target alone in the same run."""
