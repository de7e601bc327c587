"""The two ends of a study: what runs at the coordinator and at a site."""
