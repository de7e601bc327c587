"""The same study across hospitals, on NVIDIA FLARE: parties with certificates, each a process of its own.

A consortium is declared in a file (`consortium`), from which each party gets a start-up kit (`kits`). At a site
``site.yaml`` (`site_file`) says where its data are and what studies may ask (`policy`). A study becomes a job without
code (`job`), in which one end runs at the coordinator (`coordinator_end`), and one at each site (`site_end`); between
them go the same messages as between the engines of one machine (`flare_engine`).
"""
