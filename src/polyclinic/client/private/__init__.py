"""Private training at a site: gradients of patients, shortened, with noise."""
