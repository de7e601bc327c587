"""The same study across hospitals, on NVIDIA FLARE: parties with certificates, each a process of its own.

A consortium is declared in a file (`consortium`), from which each party gets a start-up kit (`kits`) with a key and a
certificate (`trust`). At a site ``site.yaml`` (`site_file`) says where its data are and what studies may ask; `checks`
looks whether all is as it must be, and `processes` starts and ends a party. A researcher (`session`) hands in a study
as a job without code (`job`), of which one end runs at the coordinator and one at each site (`ends`); between them go
the same messages as between the engines of one machine (`remote`). `watching` shows where a study is.
"""
