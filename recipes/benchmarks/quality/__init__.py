"""How good are the results of an optimizer? Eleven tasks on real data and real weights, offline, on one CPU thread."""
