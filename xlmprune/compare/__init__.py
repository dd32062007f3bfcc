"""Methods x seeds x tasks under one budget, as one table with its spread (`xlmprune compare`).

plan          what is compared: cells, each a resolved recipe with a place in the table
dense         the dense stage trained once for all cells that share it
work          one piece of work, done in whatever process an executor chose
local, ray    executors: one piece after the other on this machine, or Ray tasks
significance  paired tests on the same examples, corrected for their number
table         what the cells found, as the keys of comparison.json
pages         comparison.md, comparison.html and the tables for the terminal
"""

from __future__ import annotations
