"""The data sheet of a study: one HTML page that shows a person at the site what was read. It never leaves the site."""
