"""A results folder as an RO-Crate: files with a description of each and of how they came about, for an archive."""

from polyclinic.study.crate.export import Crate, export_crate

__all__ = ["Crate", "export_crate"]
