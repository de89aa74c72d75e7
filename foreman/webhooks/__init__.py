"""Pushes the events of jobs to their receivers: at least once, signed, and hurting nobody."""
