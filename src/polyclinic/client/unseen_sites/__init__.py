"""Sites that took no part in training: adaptation to their cases, and a choice among the sites' models."""
