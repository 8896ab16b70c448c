"""The formulas of a rule in print, taken from the code that runs.

catalog    what can be shown, and its dimensions;   trace: the named steps of a function's body
show       ``gradderiv show``;   explicit: one entry of a tiny case;   explain: the whole layer, for given options
"""
