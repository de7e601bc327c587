"""What hooks of parts must give: said where they give it, since later on nobody can see whose mistake it was."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from polyclinic.errors import PartError

_MEND = "Mend the package that brings the part; what each hook gives stands in docs/adding-a-part.md."


def wrong(part: str, hook: str, got: str, expected: str, site: str = "") -> PartError:
    """A hook of a part gave what it must not.

    Args:
        part: its name.
        hook: which one.
        got: what it gave.
        expected: what it has to give.
        site: where; none for the server.
    """
    where = f" at site {site}" if site else ""
    return PartError("P304", f"The part {part}{where} gave {got} in `{hook}`; expected {expected}.", _MEND)


def kind_of(found: object) -> str:
    """What something is, for people."""
    if isinstance(found, Tensor):
        return f"a tensor {list(found.shape)}"
    return "nothing" if found is None else f"something of type {type(found).__name__}"


def tensors_of(part: str, hook: str, found: dict[str, Tensor], site: str = "") -> dict[str, Tensor]:
    """What a hook gave, if it is tensors by name.

    Raises:
        PartError: P304, it is something else.
    """
    expected = "a dictionary of tensors, `{}` for none"
    if not isinstance(found, dict):
        raise wrong(part, hook, kind_of(found), expected, site)
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise wrong(part, hook, f"{kind_of(tensor)} as {name!r}", expected, site)
    return found


class Unwritten:
    """Tensors that a hook may read but not write to, since others have them, too.

    Args:
        things: by name; those that are no tensors are compared by what they are.
    """

    def __init__(self, things: Mapping[str, object]) -> None:
        self._things, self._versions = dict(things), [_version(thing) for thing in things.values()]

    def _written(self) -> list[str]:
        """Names of those that were written to."""
        before = zip(self._things.items(), self._versions, strict=True)
        return [name for (name, thing), version in before if _version(thing) != version]

    def changed(self, things: Mapping[str, object]) -> bool:
        """Whether ``things`` are others than before, or were written to."""
        same = things.keys() == self._things.keys() and all(things[name] is own for name, own in self._things.items())
        return not same or bool(self._written())

    def check(self, part: str, hook: str, site: str = "") -> None:
        """See that a part at a site, or at the server, did not write to them.

        Raises:
            PartError: P304, it did.
        """
        for name in self._written():
            raise wrong(part, hook, f"{name!r} other numbers in place", "a new tensor: others have this one", site)


def _version(thing: object) -> int:
    """How often a tensor was written to: PyTorch counts that, so nothing has to be compared."""
    return thing._version if isinstance(thing, Tensor) and not thing.is_inference() else 0


def stages_of(part: str, found: object, sites: Collection[str]) -> Sequence[Mapping[str, Sequence[str]]]:
    """The stages that a grouping gave, if they are groups of sites that take part, each site at most once in a stage.

    Raises:
        PartError: P304, they are something else.
    """
    expected = "a list of stages, each `{model: [site, ...]}`"
    if not isinstance(found, list | tuple) or not found:
        raise wrong(part, "stages", "an empty list" if found == [] else kind_of(found), expected)
    for stage in found:
        if not isinstance(stage, Mapping):
            raise wrong(part, "stages", f"{kind_of(stage)} among the stages", expected)
        seen = set[str]()
        for model, members in stage.items():
            if isinstance(members, str) or not isinstance(members, Sequence):
                raise wrong(part, "stages", f"{kind_of(members)} as the sites of {model!r}", expected)
            for site in members:
                if site not in sites:
                    raise wrong(part, "stages", f"{site!r} among the sites of {model!r}", "sites of `turn.sites`")
                if site in seen:
                    raise wrong(part, "stages", f"{site} twice in a stage", "each site at most once in a stage")
                seen.add(site)
    return found
