"""What each kind of attack does, in the words of the report, which needs nothing else of attacks."""

from __future__ import annotations

#: Kind of attack -> what was wrong at the site.
WORDS = {
    "label_flip": "the class of training cases was turned into its opposite",
    "swapped_labels": "training cases had the labels of other cases, as after a slip in a spreadsheet",
    "missing_class": "cases of one class were missing",
    "blank_images": "training images were blank, or rows of the table empty",
    "wrong_scaling": "values of training cases were too large by a factor, as with a wrong unit or window",
    "wrong_spacing": "training images were shown at a wrong size, as with a wrong pixel spacing",
    "backdoor": "training cases carried a mark and the label that the attacker wants, "
    "so that the model learns to obey the mark",
    "sign_flip": "the site sent the opposite of what it had learned",
    "scaling": "the site sent its change many times too large",
    "gaussian_noise": "the site sent noise",
    "alie": "the site sent a change that stays near the others but always leans to one side",
    "inner_product": "the site sent the opposite of what the honest sites had learned",
    "false_statistics": "the site sent honest weights with false statistics of normalisation layers",
}
