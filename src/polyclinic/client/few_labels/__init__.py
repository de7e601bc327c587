"""Few, weak or missing labels, and what sites learn from public data."""
