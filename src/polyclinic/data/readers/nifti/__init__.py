"""NIfTI: header, place in space, values."""
