"""Opening data: what each site says of its own, what all agree on, and the cases that come of it."""
