"""What all sites agree on before a case is used: features, values of codes, classes, and how volumes are prepared.

It is made from what each site says of its rows (`polyclinic.data.opening.census`), in a fixed order that does not
depend on which site has which rows. Where sites do not go together, nothing is guessed: the message names the column
and the sites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from polyclinic.data.masks.classes import MaskClasses
from polyclinic.data.opening.census import Census, code_columns
from polyclinic.data.opening.subgroups import Subgroup, agree_groups, group_order
from polyclinic.data.quality.words import some
from polyclinic.data.spec import DataSpec, Patch, Preprocessing, Target
from polyclinic.data.tables.codes import in_order, one_text_each, scalar_text
from polyclinic.data.tables.findings import check_findings, flat_classes
from polyclinic.data.tables.labels import MOST_CLASSES, binary_names
from polyclinic.data.tables.times import EVENT_CLASSES, check_events
from polyclinic.errors import DataError, StudyError, nearest
from polyclinic.limits import Body, Count, Name

#: Fewer labelled cases of a site than this may lack the others' classes by chance.
_SOME = 10


class Agreement(Body):
    """What all sites are told.

    Attributes:
        features: columns of the table that are features, in order.
        values: for each column of codes its values in order: they become the columns ``COLUMN=VALUE``.
        spellings: for each column of codes, each spelling and the value that it means; none for a column whose values
            the study lists.
        numeric: covariates that are numbers.
        classes: names of the classes in index order, of several findings those of one after another; empty for
            regression.
        labels: spelling of the label -> index of the class; None where the study file says what counts.
        subgroups: for each column of a subgroup, each spelling and the group that it means.
        preprocessing, patch: how volumes are prepared, with what was planned; None for other data.
    """

    features: list[Name] = []
    values: dict[Name, list[Name]] = {}
    spellings: dict[Name, dict[Name, Name]] = {}
    numeric: list[Name] = []
    classes: list[Name] = []
    labels: dict[Name, Count] | None = None
    subgroups: dict[Name, dict[Name, Name]] = {}
    preprocessing: Preprocessing | None = None
    patch: Patch | None = None

    def planned(self, spec: DataSpec) -> Agreement:
        """The same, for volumes that are prepared as ``spec`` says after planning."""
        return self.model_copy(update={"preprocessing": spec.preprocessing, "patch": spec.planned_patch})

    @property
    def groups(self) -> dict[str, list[str]]:
        """For each column of a subgroup that is not cut at edges, the names of its groups in order."""
        return {
            column: sorted(set(spellings.values()), key=group_order)
            for column, spellings in self.subgroups.items()
            if spellings
        }

    def features_encoded(self, spec: DataSpec) -> list[str]:
        """Names of the columns of the inputs: one for each value of a column of codes; or of the image channels."""
        if spec.image is not None:
            if spec.preprocessing is not None:
                return spec.image_columns
            return ["red", "green", "blue"] if spec.channels == "rgb" else ["grey"]
        coded = {name: self.values[name] for name in self.features if name in spec.categorical}
        return [
            text
            for name in self.features
            for text in ([f"{name}={value}" for value in coded[name]] if name in coded else [name])
        ]

    def covariates_encoded(self, spec: DataSpec) -> dict[str, list[str]]:
        """For each covariate of harmonisation the names of its columns: of a group all values but the first."""
        combat = spec.harmonisation.combat
        names = dict.fromkeys([*combat.covariates, *combat.groups]) if combat is not None else {}
        return {
            name: [f"{name}={value}" for value in self.values[name][1:]] if name in self.values else [name]
            for name in names
        }

    def prepared(self, spec: DataSpec) -> DataSpec:
        """``spec`` with what was planned of volumes."""
        if self.preprocessing is None:
            return spec
        return spec.model_copy(update={"preprocessing": self.preprocessing, "patch": self.patch})


def agree(
    censuses: Mapping[str, Census], spec: DataSpec, target: Target, subgroups: Sequence[Subgroup] = ()
) -> Agreement:
    """What all sites agree on.

    Args:
        censuses: what each site says, in the order of the sites.
        spec: the ``data:`` part of the study file.
        target: what is to be predicted of each case.
        subgroups: by what patients are grouped.

    Raises:
        DataError: P202, P203 or P205, the sites' columns or values do not go together, or nothing can be learned.
        StudyError: P102, ``classes`` names a class twice.
    """
    there = {site: census for site, census in censuses.items() if census.usable}
    if not any(census.labelled for census in there.values()):
        found = sum(census.found for census in censuses.values())
        raise DataError("P205", f"No row can be used: the sites have {found} rows, and none of them is complete.",
                        "Mend the tables or the `data:` part.")  # fmt: skip
    features = _features(there)
    columns = code_columns(spec, features)
    for column, kinds in _kinds(there).items():
        if _is_text(column, kinds):
            columns.append(column)
    _check_named(there, columns, spec, target)
    values, spellings = dict[str, list[str]](), dict[str, dict[str, str]]()
    for column in columns:
        if column in spec.categories:  # the study says which there are, and how they are spelt
            values[column] = [scalar_text(value) for value in spec.categories[column]]
            continue
        values[column], spellings[column] = _codes(column, there)
        if not values[column] and column in spec.categorical:
            raise DataError("P203", f"The column {column!r} (`categorical`) has no value.", "Take it out.")
    combat = spec.harmonisation.combat
    classes, labels = _classes(there, spec, target)
    return Agreement(
        features=features, values=values, spellings=spellings, classes=classes, labels=labels,
        numeric=[name for name in (combat.covariates if combat else []) if name not in values],
        preprocessing=spec.preprocessing, patch=spec.planned_patch,
        subgroups={
            one.column: agree_groups(one, [census.subgroups[one.column] for census in there.values()])
            for one in subgroups
        },
    )  # fmt: skip


def _features(censuses: Mapping[str, Census]) -> list[str]:
    """The features of the first site, if all have them, and then those that it took for mere numbers of rows.

    A column is left out as such a number where every site with more than a few rows takes it for one.

    Raises:
        DataError: P202 with the site and the column that it lacks.
    """
    if not censuses:
        return []
    columns = dict.fromkeys(name for one in censuses.values() for name in [*one.features, *one.counters])
    sure = [one for one in censuses.values() if one.usable >= _SOME] or list(censuses.values())
    left_out = {name for name in columns if all(name in one.counters for one in sure)}
    chosen = [name for name in columns if name not in left_out]
    (first, census), *others = censuses.items()
    for site, other in others:
        for here, mine, elsewhere, theirs in ((site, other, first, census), (first, census, site, other)):
            there = {*mine.features, *mine.counters}
            lacking = [name for name in chosen if name in {*theirs.features, *theirs.counters} - there]
            if lacking:
                raise DataError(
                    "P202", f"Site {here} has no feature {lacking[0]!r}, which site {elsewhere} has"
                    + (f", and {len(lacking) - 1} more are missing." if len(lacking) > 1 else "."),
                    f"{nearest(lacking[0], sorted(there))} Name the same columns at all sites, or take those out that "
                    "one of them lacks (`exclude`).".strip(),
                )  # fmt: skip
    return chosen


def _kinds(censuses: Mapping[str, Census]) -> dict[str, dict[str, Census]]:
    """For each covariate that may be a number, the sites that have rows of it."""
    found = dict[str, dict[str, Census]]()
    for site, census in censuses.items():
        for column in census.covariates:
            found.setdefault(column, {})[site] = census
    return found


def _is_text(column: str, censuses: Mapping[str, Census]) -> bool:
    """Whether a covariate is a group at all sites; else it is a number at all.

    Raises:
        DataError: P203 with what it is where.
    """
    kinds = {site: census.covariates[column] for site, census in censuses.items()}
    numbers, others = sum(kind.numbers for kind in kinds.values()), sum(kind.others for kind in kinds.values())
    advice = next((kind.advice for kind in kinds.values() if kind.advice), "")
    if others and (numbers or advice):
        where = [site for site, kind in kinds.items() if kind.others]
        at = f" (at {some(where)})" if len(kinds) > 1 else ""
        raise DataError(
            "P203", f"The covariate {column!r} has {numbers} numbers and {others} other values{at}.",
            advice or "Add the other values to `missing`, or name the column under `groups`.",
        )  # fmt: skip
    if numbers and any(kind.padded for kind in kinds.values()):
        raise DataError(
            "P203", f"The covariate {column!r} has numbers that begin with a 0, as codes do.",
            "Name the column under `groups`; for a number leave out the zeros in front.",
        )  # fmt: skip
    return others > 0


def _check_named(censuses: Mapping[str, Census], columns: Iterable[str], spec: DataSpec, target: Target) -> None:
    """Values that a site does not name can't become classes or columns.

    Raises:
        DataError: P203 with the site and the column.
    """
    for site, census in censuses.items():
        for column, count in census.withheld.items():
            label = column == spec.label and target == "labels" and spec.positive is None
            if not label and column not in columns:
                continue
            values = "value has" if count == 1 else "values have"
            entry = "`classes: [...]`" if label else f"`categories: {{{column}: [...]}}`"
            raise DataError(
                "P203", f"Site {site}: {count} {values} too few cases in the column {column!r} to be named outside the "
                "site.", f"List the values that count with {entry}: rows with others are left out and counted. Or let "
                "the site name them.",
            )  # fmt: skip


def _codes(column: str, censuses: Mapping[str, Census]) -> tuple[list[str], dict[str, str]]:
    """The values of a column of codes in order, and what each spelling means."""
    counts = Counter[str]()
    for census in censuses.values():
        counts.update(census.groups.get(column, {}))
    texts = one_text_each(counts)
    known = {texts[spelling] for spelling, count in counts.items() if count}
    return in_order(known), {spelling: text for spelling, text in texts.items() if text in known}


def fixed_classes(spec: DataSpec, target: Target) -> list[str] | None:
    """Names of the classes where the study file says them, none for numbers; None where sites say which there are.

    Raises:
        StudyError: P102, ``classes`` names a class twice.
    """
    if target == "masks":
        return list(MaskClasses.of(spec).names)
    if target == "times":
        return list(EVENT_CLASSES)
    if target == "findings":
        return flat_classes(spec)
    if target in ("numbers", "images"):
        return []
    if spec.positive is not None:
        return binary_names(str(spec.label), spec.positive)
    if spec.classes is None:
        return None
    names = [scalar_text(value) for value in spec.classes]
    if len(set(names)) < max(2, len(names)):
        raise StudyError("P102", f"`classes` is {names}.", "Give two or more different values.")
    return names


def _classes(censuses: Mapping[str, Census], spec: DataSpec, target: Target) -> tuple[list[str], dict[str, int] | None]:
    """Names of the classes, and the class of each spelling of the label."""
    if target == "times":
        check_events(
            {site: census.labelled for site, census in censuses.items() if census.labelled},
            sum(census.positives or 0 for census in censuses.values()),
            {site: census.unknown for site, census in censuses.items() if census.unknown},
            {text for census in censuses.values() for text in census.labels}, spec,
        )  # fmt: skip
    elif target == "findings":
        check_findings({site: census.findings for site, census in censuses.items() if census.findings}, spec)
    elif target == "numbers":
        numbers = {census.one_number for census in censuses.values() if census.labelled}
        if len(numbers) == 1 and None not in numbers:
            raise DataError(
                "P203",
                f"The column {spec.label!r} (`label`) has the same number in every row, so there is nothing to learn.",
                "Name the column with the number to predict.",
            )
    elif target == "labels" and spec.positive is not None:
        _check_two(censuses, spec)
    fixed = fixed_classes(spec, target)
    if fixed is not None:
        return fixed, None
    texts = one_text_each({text for census in censuses.values() for text in census.labels})
    names = in_order(set(texts.values()))
    count = max([len(names), *(census.different for census in censuses.values())])
    if not 2 <= count <= MOST_CLASSES:
        values = "value" if count == 1 else "different values"
        raise DataError(
            "P203",
            f"The column {spec.label!r} (`label`) has {count} {values}, which can't be classes.",
            "Say with `positive` which values are the positive class, or list the `classes`.",
        )
    if spec.partition is None:
        _check_shared(censuses, spec, texts)
    places = {name: place for place, name in enumerate(names)}
    return names, {spelling: places[text] for spelling, text in texts.items()}


def _check_two(censuses: Mapping[str, Census], spec: DataSpec) -> None:
    """Some case must be positive, and some not.

    Raises:
        DataError: P203 with the values that there are, where they are few.
    """
    positive = sum(census.positives or 0 for census in censuses.values())
    labelled = sum(census.labelled for census in censuses.values())
    if 0 < positive < labelled:
        return
    found = in_order(set(one_text_each({text for c in censuses.values() for text in c.labels}).values()))
    values = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
    has = f" The column {spec.label!r} (`label`) has: {values}." if found else ""
    raise DataError(
        "P203",
        f"`positive` ({spec.positive!r}) is true of {'every' if positive else 'no'} row, so there is only one class."
        + has,
        "Say with `positive` which of them are the positive class.",
    )


def _check_shared(censuses: Mapping[str, Census], spec: DataSpec, texts: Mapping[str, str]) -> None:
    """Two sites that know no class of each other write the label in two ways: nothing could be learned together.

    Raises:
        DataError: P203 with the sites and their values.
    """
    values = {site: {texts[text] for text in census.labels} for site, census in censuses.items() if census.labels}
    several = {site: own for site, own in values.items() if len(own) > 1 and censuses[site].labelled >= _SOME}
    for site, own in several.items():
        others = set().union(*(theirs for other, theirs in values.items() if other != site))
        if others and not own & others:
            raise DataError(
                "P203", f"Site {site} writes the label {spec.label!r} in another way than the others: it has "
                f"{some(in_order(own))}, and they have {some(in_order(others))}.",
                "Write the classes alike in all tables, or list with `positive` all values of the positive class; if "
                "the sites do have different classes, list them all with `classes`.",
            )  # fmt: skip
