"""Names of columns in a table of predictions."""

#: With this begins the name of a column that has the group of each case; what follows is a column of the study's table.
SUBGROUP = "subgroup: "
