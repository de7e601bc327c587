"""Study files for a folder of phantoms, ready to run."""

from __future__ import annotations

from polyclinic.data.phantom.anatomy import grid_shape

_IMAGES = """\
data:
  table: manifest.csv
  site: site
  subject: subject
  image: image
{target}
  preprocessing:            # every site brings its images to this grid
    orientation: RAS
    spacing: [{spacing:g}, {spacing:g}, {spacing:g}]
    size: [{size}]
    intensity: zscore
"""

_TISSUE = """\
# Question: which voxels are fluid, grey matter and white matter?
#
# Data: phantoms made by `polyclinic phantom`; the mask of each image holds the true tissues (1 fluid, 2 grey matter,
#   3 white matter).
# Run it: polyclinic run study-tissue.yaml --out results-tissue
study: "Tissues of phantom brains"
{data}task: segmentation
model: {{unet: {{channels: [8, 16, 32]}}}}
training:
  rounds: 10
  local_epochs: 2
  batch_size: 2
  optimizer: {{adamw: {{lr: 0.003}}}}
evaluation: {{folds: 3, metrics: [dice, hd95]}}
methods: [single, mix, fedavg, fedbn]
"""

_DIAGNOSIS = """\
# Question: disease or control, from the whole image?
#
# Data: phantoms made by `polyclinic phantom`; the disease shrinks hippocampus and cortex and widens the ventricles.
# Run it: polyclinic run study-diagnosis.yaml --out results-diagnosis
study: "Disease against control from phantom brains"
{data}task: classification
model: {{cnn: {{channels: [8, 16, 32]}}}}
training:
  rounds: 15
  local_epochs: 2
  batch_size: 4
  optimizer: {{adamw: {{lr: 0.001}}}}
evaluation: {{folds: 3, metrics: [auc, acc, bac, sen, spe]}}
methods: [single, mix, fedavg, fedbn]
"""

_AGE = """\
# Question: how old is this person, from the whole image?
#
# Data: phantoms made by `polyclinic phantom`; with age the ventricles widen and grey matter thins.
# Run it: polyclinic run study-age.yaml --out results-age
study: "Age from phantom brains"
{data}task: regression
model: {{cnn: {{channels: [8, 16, 32]}}}}
training:
  rounds: 15
  local_epochs: 2
  batch_size: 4
  optimizer: {{adamw: {{lr: 0.001}}}}
evaluation: {{folds: 3, metrics: [mae, r2]}}
methods: [single, mix, fedavg, fedbn]
"""

_REGIONS = """\
# Question: disease or control, from the grey matter of 90 regions as measured in the images?
#
# Data: regions.csv, made by `polyclinic phantom`. Scanners differ, and so do the volumes measured with them.
# Run it: polyclinic run study-regions.yaml --out results-regions
study: "Disease against control from regional volumes of phantom brains"
data:
  table: regions.csv
  site: site
  subject: subject
  label: diagnosis
  positive: disease
  features: ["left_*", "right_*"]
  divide_by: brain_volume   # head size taken out
  scaling: per_site
task: classification
model: logistic
training:
  rounds: 40
  batch_size: 8
  optimizer: {sgd: {lr: 0.01, momentum: 0.9, weight_decay: 0.1}}
evaluation: {folds: 3, metrics: [auc, acc, bac, sen, spe]}
methods: [single, cross, mix, fedavg, fedsgd, {fedprox: {mu: 0.1}}]
"""


def table_studies() -> dict[str, str]:
    """File name -> content of the studies of ``regions.csv``."""
    return {"study-regions.yaml": _REGIONS}


def image_studies(spacing: float) -> dict[str, str]:
    """File name -> content of the studies of images with a voxel size in millimetres."""
    size = ", ".join(str(length) for length in grid_shape(spacing))
    box = ", ".join(str(min(48, 8 * (length // 8))) for length in grid_shape(spacing))
    patch = f"patch: [{box}]      # random boxes for training; whole images are predicted window by window"

    def data(*target: str) -> str:
        return _IMAGES.format(target="\n".join(f"  {line}" for line in target), spacing=spacing, size=size)

    return {
        "study-tissue.yaml": _TISSUE.format(data=data("mask: mask", "mask_classes: [fluid, grey, white]", patch)),
        "study-diagnosis.yaml": _DIAGNOSIS.format(data=data("label: diagnosis", "positive: disease")),
        "study-age.yaml": _AGE.format(data=data("label: age")),
    }
