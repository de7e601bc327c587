"""The entries that name networks: that of the study, and those of sites that have another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyclinic.data.spec import DataSpec
from polyclinic.models import MODELS, POOLING, RECONSTRUCTING, resolve_inner
from polyclinic.options import EntryError, Place

#: An entry that is planned from the images of all sites.
AUTO = "auto"

#: Name and complete options of a network.
Named = tuple[str, dict[str, Any]]


def read_network(entry: Any, data: DataSpec, place: Place = ("model",)) -> Named:
    """The network that an entry names.

    Raises:
        EntryError: it is not in the catalogue, or not for cases of this kind.
    """
    name, options = (AUTO, {}) if entry == AUTO else MODELS.resolve(entry, place)
    if data.bags is not None and name not in POOLING:
        raise EntryError("P104", f"Cases are bags (`data: {{bag: ...}}`), and the model {name} takes single "
                         "instances.", f"Put it into one for bags: `model: {{gated_attention: {{encoder: "
                         f"{name}}}}}`. Others are {', '.join(POOLING[1:])}.", place=place)  # fmt: skip
    if data.bags is None and name in POOLING:
        raise EntryError("P104", f"The model {name} is for bags, and each row is a case of its own.",
                         "Name the column whose rows with the same value are one case: `data: {bag: COLUMN}`.",
                         place=place)  # fmt: skip
    if data.undersampling is not None and name not in RECONSTRUCTING:
        raise EntryError("P104", f"`undersampling` is for reconstruction, and the model {name} knows nothing of "
                         "k-space.", "Put it into one that does: `model: {unrolled: {network: unet}}`. For another "
                         "task take `undersampling` out.", place=place)  # fmt: skip
    if data.undersampling is None and name in RECONSTRUCTING:
        raise EntryError("P104", f"The model {name} is for `task: reconstruction`, and the study does not say "
                         "which lines of k-space are measured.",
                         "Give `data: {undersampling: ...}`, or name another model.", place=place)  # fmt: skip
    return name, resolve_inner(name, options, place)


def read_networks(entries: Mapping[str, Any], data: DataSpec) -> dict[str, Named]:
    """Site -> its network, of the sites that have another than the study's (``networks:``).

    Raises:
        EntryError: an entry is not in the catalogue, or can't be the network of a single site.
    """
    found = {site: read_network(entry, data, ("networks", site)) for site, entry in entries.items()}
    for site, (name, _) in found.items():
        if name in (AUTO, "bundle"):
            why = "is planned for all sites" if name == AUTO else "brings its weights to all sites"
            raise EntryError("P104", f"`{name}` {why}, and can't be the network of {site} alone.",
                             "Name a network of the catalogue, or use it as the study's `model`.",
                             place=("networks", site))  # fmt: skip
    return found
