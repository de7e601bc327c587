"""Readers of medical image files: NIfTI and DICOM, one way to a volume with its place in space."""
