"""A model for other programs: as an ONNX file, or as a MONAI bundle."""
