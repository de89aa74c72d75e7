"""Runs the durable jobs that were chosen: the target, the store and the turn meet here."""
