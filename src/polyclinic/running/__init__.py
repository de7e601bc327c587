"""What the loop of rounds is built on: its plan, where it is, who counts, and what is chosen on validation cases."""
