"""Pictures (PNG, JPEG, TIFF, single DICOM images) as compact arrays."""
