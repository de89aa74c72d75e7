"""The HTTP surface: what foreman answers itself, and the fall-through to the target."""
