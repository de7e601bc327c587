"""Print the documentation's page: ``python -m polyclinic.data.catalogue > docs/data-catalogue.md``."""

from polyclinic.data.catalogue import ENTRIES
from polyclinic.data.catalogue.page import catalogue_page

print(catalogue_page(ENTRIES.values()), end="")
