"""The ``data:`` part of a study file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

Scalar = bool | int | float | str


class ComBatOptions(BaseModel):
    """How ComBat takes the sites' differences out of features; see `polyclinic.data.combat`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    covariates: list[str] = []
    """Columns whose effect on the features is kept. A column of numbers counts as a number, any other as groups."""
    groups: list[str] = []
    """Covariates whose numbers are names of groups (1: left-handed, 2: right-handed, 3: both)."""
    empirical_bayes: bool = True
    """Whether features of a site borrow strength from each other."""
    reference_site: str | None = None
    """A site that stays as it is, and to whose mean and spread the others are brought; default: the mean of all."""


class Harmonisation(BaseModel):
    """The entry ``harmonisation``: ``none``, ``combat``, or ``{combat: {covariates: [age, sex]}}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    combat: ComBatOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        if given == "none":
            return {}
        if given == "combat":
            return {"combat": {}}
        if isinstance(given, str):
            raise ValueError("expected none, combat or {combat: {covariates: [COLUMN, ...]}}")
        return (
            {key: {} if value is None else value for key, value in given.items()} if isinstance(given, dict) else given
        )

    @model_serializer
    def _to_name(self) -> str | dict[str, Any]:
        return "none" if self.combat is None else {"combat": self.combat.model_dump()}


class DataSpec(BaseModel):
    """Where the cases are and what of them is used. Paths are relative to the study file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str | None = None
    """A CSV or TSV file with a row a case, or ``package:NAME/path`` for a file inside an installed Python package."""
    tables: dict[str, str] | None = None
    """Instead of ``table``: one file a site, ``{site: path}``."""
    columns: list[str] | None = None
    """Column names, for files without a header line."""
    missing: list[str] = ["", "NA", "N/A", "n/a", "nan", "NaN", "null", "?"]
    """Cell texts that mean a missing value."""
    where: dict[str, Scalar | list[Scalar]] = {}
    """Rows to use: ``{column: value}``, ``{column: [values]}`` or ``{column: "< 3"}`` (also <=, >, >=, ==, !=)."""

    site: str | None = None
    """Column that names the site (not with ``tables``)."""
    subject: str | None = None
    """Column that names the patient; without it every row is a patient of its own. Splits are by patient."""
    subject_pattern: str | None = None
    """Regular expression whose first group is the patient within the ``subject`` cell, e.g. ``(Image_\\d+)[LR]``."""

    label: str | None = None
    """Column with the class to predict (classification)."""
    positive: Scalar | list[Scalar] | None = None
    """Makes the label binary: the value, values, or comparison (``"< 1"``) that means positive."""
    classes: list[Scalar] | None = None
    """Order of the classes; rows with another label are rejected. Default: sorted labels found."""

    features: str | list[str] | None = None
    """Feature columns of a table study: names or globs (``vol_*``)."""
    exclude: str | list[str] = []
    """Names or globs taken out of ``features``."""
    categorical: list[str] = []
    """Feature columns to encode one-hot (each value becomes a column of its own)."""
    divide_by: str | None = None
    """Column by which every numeric feature is divided (e.g. intracranial volume)."""

    image: str | None = None
    """Column with the path of an image file (PNG, JPG)."""
    mask: str | None = None
    """Column with the path of a mask image (segmentation); non-zero is foreground."""
    root: str | None = None
    """Folder to which image paths are relative; default: the table's folder."""
    size: tuple[int, int] | None = None
    """Height and width in pixels to which images are brought; needed for images."""
    channels: Literal["rgb", "grey"] = "rgb"

    scaling: Literal["per_site", "federated", "none"] = "per_site"
    """Standardise features (or image channels): from the site's own training part, from federated summaries, or not."""
    imputation: Literal["mean", "median", "drop"] = "mean"
    """Missing features: the mean or median of the training part that ``scaling`` uses, or the case is rejected."""
    harmonisation: Harmonisation = Harmonisation()
    """Taking differences between sites out of features before they are scaled, from summaries that the sites send."""
    augmentation: list[str | dict[str, dict[str, object]]] = []
    """Random MONAI transforms for training images: ``[RandFlip: {prob: 0.5, spatial_axis: 0}, ...]``."""
    max_unreadable: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of a site's image files that may be unreadable before the site stops."""
