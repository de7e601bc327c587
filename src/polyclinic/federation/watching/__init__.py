"""Where a study is, on a page and on a terminal."""
