"""Sites whose data look different: scanners, stainings, units."""
