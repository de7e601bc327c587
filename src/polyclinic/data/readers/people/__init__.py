"""Tables about patients and visits beside images."""
