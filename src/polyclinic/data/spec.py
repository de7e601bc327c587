"""The ``data:`` part of a study file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_serializer,
    model_validator,
)

#: What is to be predicted of each case: one of several classes, a number, a mask, the time of an event, several labels
#: at once, or the image itself from part of its k-space.
Target = Literal["labels", "numbers", "masks", "times", "findings", "images"]
Scalar = bool | int | float | str
Share = Annotated[float, Field(ge=0.0, le=1.0)]
#: What the public set is called where sites have their names.
PUBLIC = "public set"
#: In what simulated sites may differ.
PARTITIONS = ("label_skew", "quantity_skew", "even")


class Preprocessing(BaseModel):
    """Brings volumes of all scanners to one grid. Its presence says that the images are volumes (NIfTI, DICOM)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    orientation: Annotated[str, Field(pattern="^[RLAPSI]{3}$")] = "RAS"
    """Where the three axes point: right or left, anterior or posterior, superior or inferior."""
    spacing: PositiveFloat | tuple[PositiveFloat, PositiveFloat, PositiveFloat] | Literal["auto"] | None = None
    """Voxel size in mm; None keeps each image's own; ``auto`` is planned from the images of all sites."""
    size: tuple[PositiveInt, PositiveInt, PositiveInt] | Literal["auto"]
    """Voxels along the three axes: larger images are cropped, smaller ones padded. ``auto`` is planned."""
    centre: Literal["image", "foreground"] = "image"
    """What comes to lie in the middle: that of the image, or of the box around its foreground."""
    intensity: str | dict[str, dict[str, object]] = "zscore"
    """``none``, ``zscore``, ``percentile``, ``window`` (CT) or ``nyul``, with or without options:
    ``{window: {lower: -160, upper: 240}}``; or ``auto``, which is planned."""
    frames: Literal["reject", "first", "mean"] = "reject"
    """What becomes of an image with several frames (a time series)."""

    @property
    def sides(self) -> tuple[int, int, int] | None:
        """Voxels along the three axes; None until they are planned."""
        return None if self.size == "auto" else self.size

    @property
    def steps(self) -> tuple[float, float, float] | None:
        """Voxel sizes in mm; None where images keep their own, or until they are planned."""
        if self.spacing is None or self.spacing == "auto":
            return None
        return self.spacing if isinstance(self.spacing, tuple) else (self.spacing,) * 3


class Patch(BaseModel):
    """Training on boxes cut from the volumes at random."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[PositiveInt, PositiveInt, PositiveInt]
    """Voxels along the three axes."""
    foreground: Share = 0.5
    """Share of the boxes whose middle is a voxel of the mask."""
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    """By how much windows overlap when a whole volume is predicted."""


class Undersampling(BaseModel):
    """Which lines of k-space an accelerated scan would measure; see `polyclinic.data.acquisition.measured_lines`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    acceleration: Annotated[float, Field(ge=1.0)]
    """Of so many lines one is measured, those in the middle included."""
    center: Share = 0.08
    """Share of the lines, those in the middle of k-space, that are always measured."""
    lines: Literal["random", "equispaced"] = "random"
    """Which of the others: drawn at random, or equally far apart."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Decides which lines of a case are measured in validation and tests."""

    @model_validator(mode="after")
    def _enough(self) -> Undersampling:
        if self.center * self.acceleration > 1:
            raise ValueError(
                f"`center: {self.center:g}` measures more lines than `acceleration: {self.acceleration:g}` allows; "
                f"give a center of at most {1 / self.acceleration:.3g}"
            )
        return self


class Labels(BaseModel):
    """Labels or masks that are hidden from training, to see what methods do with few of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
    """Share of a site's training patients whose labels are kept; of each class at least one patient's. With 0 a site
    has no label but those of its test cases. Default with ``leaves``: 0."""
    leaves: Literal["box", "label"] | None = None
    """What stays of masks that are hidden: a box around each structure, or which structures there are; None leaves
    nothing."""
    sites: list[str] | None = None
    """Sites at which labels are hidden; default: all."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Decides whose labels are kept. With a larger share they are kept of the same patients and of further ones."""

    @model_validator(mode="before")
    @classmethod
    def _all_of_them(cls, given: Any) -> Any:
        return {"share": 0.0} | given if isinstance(given, dict) and given.get("leaves") is not None else given


class Finding(BaseModel):
    """One of several labels of a case; what its values mean where they are not 1 and 0."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    positive: Scalar | list[Scalar] | None = None
    """Makes it binary: the value, values, or comparison (``"< 1"``) that means positive; all others are negative."""
    classes: list[Scalar] | None = None
    """Order of its classes; a row with another value is rejected. Default: 0 and 1."""
    weight: PositiveFloat = 1.0
    """How much its loss counts beside that of other findings."""

    @model_validator(mode="after")
    def _one_meaning(self) -> Finding:
        if self.positive is not None and self.classes is not None:
            raise ValueError("`positive` and `classes` exclude each other; give one")
        if self.positive == []:
            raise ValueError("`positive` is empty; give a value")
        return self


class PublicSet(BaseModel):
    """Cases that all sites and the coordinator have, without labels: just one of ``table`` and ``sites``.

    They have the study's features or images, in the study's units. No label of them is ever read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str | None = None
    """A CSV or TSV file with a row a case, of which each party has a copy."""
    root: str | None = None
    """Folder to which its image paths are relative; default: the table's folder."""
    where: dict[str, Scalar | list[Scalar]] = {}
    """Rows of ``table`` to use, as in ``data``."""
    sites: Annotated[list[str], Field(min_length=1)] | None = None
    """Sites of the study that are the public set instead of sites: for experiments on one machine."""

    @model_validator(mode="after")
    def _one_kind(self) -> PublicSet:
        if (self.table is None) == (self.sites is None):
            raise ValueError("give either `table` (a file that all have) or `sites` (of this study)")
        if self.sites is not None and (self.root is not None or self.where):
            raise ValueError("`root` and `where` are of `table`; `sites` are read as the others")
        return self


class Mask(BaseModel):
    """What the values of masks mean, where it is not plain (0 is the background, one other number the foreground).

    Values are whole numbers, ``nan`` for what is no number, or colours of pictures: ``"#ff0000"``, ``red``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    column: str = "mask"
    """Column with the path of a mask."""
    above: float | None = None
    """What is larger is foreground: for probabilities, interpolated edges and JPEG files. Not with ``mask_classes``."""
    background: list[int | str] = [0]
    """Value or values of the background; ``nan`` is background besides 0."""
    ignore: list[int | str] = []
    """Value or values of voxels that play no part in training and metrics."""
    palette: Literal["colour", "index"] | None = None
    """What counts of a picture with a palette: colours, or the numbers that stand for them."""
    grid: Literal["voxels", "header"] | None = None
    """What counts where image and mask have the same voxels, but headers with different places in space."""

    @field_validator("background", "ignore", mode="before")
    @classmethod
    def _as_list(cls, given: Any) -> Any:
        """One value is a list of one, and YAML's ``.nan`` is ``nan``."""
        values = given if isinstance(given, list) else [given]
        return ["nan" if isinstance(value, float) and value != value else value for value in values]


class Bag(BaseModel):
    """Cases are bags: all rows with the same value of a column are one case, with one label."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str | None = None
    """Column that names the bag: the slide, the examination, the video. Default: the patient (``subject``)."""
    most: PositiveInt = 1000
    """How many instances of a bag a training step sees at most: of larger bags so many are drawn anew each time."""


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


class Dirichlet(BaseModel):
    """Shares drawn from a symmetric Dirichlet distribution."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    alpha: PositiveFloat
    """Concentration: near 0 one site has almost everything, large values bring equal shares."""


class Even(BaseModel):
    """Sites of the same size with the same labels; it has no options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Partition(BaseModel):
    """Simulated sites: the patients of all tables are shared out anew; see `polyclinic.data.partition`.

    Just one of ``label_skew``, ``quantity_skew`` and ``even`` says in what the sites differ.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: Annotated[int, Field(ge=2)]
    """Number of simulated sites."""
    label_skew: Dirichlet | None = None
    """Each class has its own shares of the sites, so that labels and sizes differ; classification only."""
    quantity_skew: Dirichlet | None = None
    """Sites differ in their number of patients, not in their labels."""
    even: Even | None = None
    """Sites differ in nothing but chance."""
    least: PositiveInt = 10
    """Fewest patients of a site; shares are drawn again until all sites have them."""
    seed: int = 0
    """Decides who goes where."""

    @model_validator(mode="before")
    @classmethod
    def _without_options(cls, given: Any) -> Any:
        """``even:`` is ``even: {}``."""
        if not isinstance(given, dict):
            return given
        return {key: {} if key in PARTITIONS and value is None else value for key, value in given.items()}

    @model_validator(mode="after")
    def _one_kind(self) -> Partition:
        found = [kind for kind in PARTITIONS if getattr(self, kind) is not None]
        if len(found) != 1:
            together = f"{' and '.join(found)} exclude each other" if found else "it is not said how sites differ"
            raise ValueError(f"{together}; give one of {', '.join(PARTITIONS)}")
        return self

    @model_serializer
    def _given(self) -> dict[str, Any]:
        """Without the kinds that were not asked for: an empty entry would ask for them."""
        return {
            name: value.model_dump() if isinstance(value, BaseModel) else value
            for name, value in self
            if value is not None
        }


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
    bag: str | Bag | None = None
    """Column that names the bag, where several rows are one case with one label: tiles of a slide, images of a patient;
    or ``{column: COLUMN, most: 1000}``, in which ``column`` is the patient if it is left out."""
    partition: Partition | None = None
    """Simulated sites: patients are shared out anew, whatever site they come from."""

    label: str | None = None
    """Column with the class (classification) or the number (regression) to predict; in segmentation with the names of
    the structures that an image without a mask shows (``cyst; tumour``, ``none``)."""
    positive: Scalar | list[Scalar] | None = None
    """Makes the label binary: the value, values, or comparison (``"< 1"``) that means positive; for survival, that the
    event happened."""
    classes: list[Scalar] | None = None
    """Order of the classes; rows with another label are rejected. Default: sorted labels found."""
    unlabelled: Literal["reject", "use"] = "reject"
    """What becomes of cases whose cell of the label, or of the mask, is empty: ``use`` keeps them for training without
    labels. They are never validated or tested, and nothing is fitted on them."""

    findings: dict[str, Finding] | None = None
    """Columns of several labels of a case, and what their values mean: ``[tb, effusion]`` for 0 and 1, or ``{effusion:
    {positive: [mild, severe]}, grade: {classes: [1, 2, 3]}}``. Cells may be empty, and a site may lack columns."""

    labels: Labels | None = None
    """Hide labels (or masks) of training cases, which stay as cases without a label: ``{share: 0.1}``. Validation and
    test cases keep theirs."""

    public: PublicSet | None = None
    """Cases without labels that all sites and the coordinator have, for methods that distil on them:
    ``public: cases.csv``, ``{table: cases.csv, where: ...}``, or ``{sites: [NAME]}``."""

    time: str | None = None
    """Column with the time of the event, or until when a case was not seen any longer (survival); above 0."""
    event: str | None = None
    """Column that says whether the event happened: 1 and 0, or what ``positive`` says."""
    time_unit: Literal["hours", "days", "weeks", "months", "years"] | None = None
    """Unit of ``time``, the same at all sites."""
    intervals: PositiveInt | list[PositiveFloat] | None = None
    """Intervals into which time is cut, the same at all sites: their ends, or how many equal ones up to the last of the
    study's times; default: 20."""

    features: str | list[str] | None = None
    """Feature columns of a table study: names or globs (``vol_*``)."""
    exclude: str | list[str] = []
    """Names or globs taken out of ``features``."""
    categorical: list[str] = []
    """Feature columns to encode one-hot (each value becomes a column of its own)."""
    categories: dict[str, list[Scalar]] = {}
    """The values of columns of codes, in order: ``{cp: [1, 2, 3, 4]}``; rows with another value are rejected. Default:
    sorted values found. Needed where a site does not name values of few cases."""
    divide_by: str | None = None
    """Column by which every numeric feature is divided (e.g. intracranial volume)."""

    image: str | list[str] | None = None
    """Column with the path of an image: PNG or JPG; with ``preprocessing`` NIfTI or DICOM, or several columns, which
    become the channels."""
    mask: str | Mask | None = None
    """Column with the path of a mask image (segmentation), in which 0 is the background and another number the
    foreground; or ``{column: COLUMN, above: 0.5}`` and other entries of `Mask` that say what is meant."""
    box: str | None = None
    """Column with boxes around the structures of an image without a mask, in pixels (``x0 y0 x1 y1``); see
    `polyclinic.data.tables.hints`."""
    mask_classes: dict[str, int | str | list[int | str]] | list[str] | None = None
    """Structures in the masks: ``{name: value or values}``, or names for the values 1, 2, ... in this order. Colours of
    pictures (``"#ff0000"``) are values, too."""
    structures: dict[str, Annotated[list[str], Field(min_length=1)]] | None = None
    """Sites that outline some of the structures only: ``{site: [names of mask_classes]}``. The others are unknown
    there, and no background."""
    root: str | None = None
    """Folder to which image paths are relative; default: the table's folder."""
    size: tuple[int, int] | None = None
    """Height and width in pixels to which images are brought; needed for PNG and JPG images."""
    channels: Literal["rgb", "grey"] = "rgb"
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """How many bits white has in pictures of 16 bits; default: what the brightest picture of a site needs."""

    undersampling: Undersampling | None = None
    """For reconstruction: which lines of k-space are measured, ``{acceleration: 4}``; the images are grey then."""

    preprocessing: Preprocessing | None = None
    """For volumes: the grid and the intensities to which they are brought."""
    patch: Patch | Literal["auto"] | None = None
    """For the segmentation of volumes: train on boxes instead of whole volumes; ``patch: [64, 64, 64]`` is enough, and
    ``auto`` is planned from the images of all sites."""
    cache: str = ".polyclinic-cache"
    """Folder for prepared volumes, so that they are prepared once."""

    scaling: Literal["per_site", "federated", "none"] = "per_site"
    """Standardise features (or image channels): from the site's own training part, from federated summaries, or not
    (the default for volumes, whose ``intensity`` does it)."""
    imputation: Literal["mean", "median", "drop"] = "mean"
    """Missing features: the mean or median of the training part that ``scaling`` uses, or the case is rejected."""
    harmonisation: Harmonisation = Harmonisation()
    """Taking differences between sites out of features before they are scaled, from summaries that the sites send."""
    augmentation: list[str | dict[str, dict[str, object]]] = []
    """Random MONAI transforms for training images: ``[RandFlip: {prob: 0.5, spatial_axis: 0}, ...]``."""
    max_unreadable: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of a site's image files that may be unreadable before the site stops."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, content: Any) -> Any:
        """``patch: [64, 64, 64]`` gives the size; volumes are not scaled again unless the study asks for it; ``public``
        may be a table alone."""
        if not isinstance(content, dict):
            return content
        content = dict(content)
        if isinstance(content.get("public"), str):
            content["public"] = {"table": content["public"]}
        if isinstance(content.get("patch"), list):
            content["patch"] = {"size": content["patch"]}
        found = content.get("findings")
        if isinstance(found, list):
            if any(isinstance(name, list | dict) for name in found):
                raise ValueError("`findings` is a list of columns, or says of each what its values mean: {tb: {...}}")
            names = [str(name) for name in found]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"`findings` names {twice!r} twice")
            content["findings"] = {name: {} for name in names}
        elif isinstance(found, dict):
            content["findings"] = {name: {} if given is None else given for name, given in found.items()}
        if content.get("undersampling") is not None:  # each image is scaled by itself
            content.setdefault("scaling", "none")
            content.setdefault("channels", "grey")
            volumes = content.get("preprocessing")
            if isinstance(volumes, dict):
                content["preprocessing"] = {"intensity": "none", **volumes}
        if content.get("preprocessing") is not None:
            content.setdefault("scaling", "none")
        return content

    @property
    def wants_plan(self) -> bool:
        """Whether something of the volumes is to be planned."""
        preparation = self.preprocessing
        return preparation is not None and "auto" in (
            preparation.spacing, preparation.size, preparation.intensity, self.patch
        )  # fmt: skip

    @property
    def mask_column(self) -> str | None:
        """The column with the paths of masks."""
        return self.mask.column if isinstance(self.mask, Mask) else self.mask

    @property
    def mask_meaning(self) -> Mask:
        """What the values of masks mean."""
        return self.mask if isinstance(self.mask, Mask) else Mask()

    @property
    def hint_columns(self) -> list[str]:
        """The columns that say something of masks that are not there: of boxes, and of names of structures."""
        return [] if self.mask is None else [name for name in (self.box, self.label) if name is not None]

    @property
    def bags(self) -> Bag | None:
        """How rows are put together to cases; None where each row is one."""
        return Bag(column=self.bag) if isinstance(self.bag, str) else self.bag

    @property
    def planned_patch(self) -> Patch | None:
        """The boxes of training, once they are planned."""
        return self.patch if isinstance(self.patch, Patch) else None

    @property
    def image_columns(self) -> list[str]:
        """The image columns, one a channel of a volume; none for tables."""
        return [self.image] if isinstance(self.image, str) else list(self.image or [])
