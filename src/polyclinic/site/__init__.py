"""What a hospital owns: its data, its private state and its log. Reached by messages only."""

from polyclinic.site.corruptible import CorruptibleSite
from polyclinic.site.site import Site, Workspace

__all__ = ["CorruptibleSite", "Site", "Workspace"]
