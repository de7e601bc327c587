"""A model in use: trained once on all cases, kept in a folder, and applied to cases that no study has seen."""
