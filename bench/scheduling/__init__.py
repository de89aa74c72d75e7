"""A simulator of the scheduler: the real turn and policy beside their rivals, on the same arrivals."""
