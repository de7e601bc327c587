"""Models of a site's own, besides or around the shared one."""
