"""Fakes of the things that foreman talks to, for its own tests and for those of others."""
