"""More parts for Polyclinic; each file enters what it brings into a catalogue."""

from polyclinic_more import (  # noqa: F401 - the parts enter their catalogues
    buffered,
    clusters,
    common_direction,
    common_statistics,
    consistency,
    largest,
    masked_sum,
    split,
)
