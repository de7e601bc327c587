"""Whether a study fits its data, its networks and its splits: what can be said before anything is trained."""
