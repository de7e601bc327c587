"""What must be so at a party before a study works."""
