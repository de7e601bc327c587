"""DICOM: headers, slices grouped into images, pixels as real values."""
