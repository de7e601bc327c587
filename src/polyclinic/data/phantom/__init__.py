"""Phantoms: brain images with known truth, made on the spot, as several sites would have them."""

from polyclinic.data.phantom.phantom import Phantom, PhantomSubject
from polyclinic.data.phantom.scanner import EFFECTS, SCANNERS, Scanner

__all__ = ["EFFECTS", "SCANNERS", "Phantom", "PhantomSubject", "Scanner"]
