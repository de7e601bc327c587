"""Secure sums: a server learns the sum of the sites' vectors, and nothing else of any of them.

Each site turns its values into whole numbers (`Ring`) and adds masks that cancel in the sum. A round has five phases;
`SiteRound` and `ServerRound` are its two ends, and know nothing of how messages travel. What all parties know
beforehand are the `Terms`, whose `Shape` says which sites have masks in common and how many must be left.

=========  =====================================  =====================================================
phase      a site                                 the server, from the answers
=========  =====================================  =====================================================
advertise  `advertise`: its public keys           `keys`: all of them, to all
share      `share`: sealed shares of its secrets  `boxes`: to each those for it
mask       `mask`: its masked vector              `add` each; `survivors`: who is in the sum, to them
agree      `agree`: signs that list               `signatures`: all of them, to those that signed
unmask     `unmask`: a share of each site         `sum`
=========  =====================================  =====================================================

What it does not do: a corrupt site can send any vector, and the sum says what it says. Sites in league with the server
know their own parts, so at least `Terms.least` honest ones should be in it.
"""

from polyclinic.secure.graph import Shape, fit_shape
from polyclinic.secure.identity import KeySigner, KnownKeys, Signer, Verifier
from polyclinic.secure.ring import Ring, Total
from polyclinic.secure.server import ServerRound
from polyclinic.secure.site import SiteRound
from polyclinic.secure.terms import Terms

__all__ = [
    "KeySigner",
    "KnownKeys",
    "Ring",
    "ServerRound",
    "Shape",
    "Signer",
    "SiteRound",
    "Terms",
    "Total",
    "Verifier",
    "fit_shape",
]
