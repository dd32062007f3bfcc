"""Compare methods, seeds and tasks under one budget, in one table with the spread over seeds (`xlmprune compare`).

plan          what is compared: cells, each a resolved recipe with its row and column
running       train each shared dense stage once, run every cell, write the table
work          one piece of work: an `xlmprune compress` process and its outcome
local, ray    executors: processes on this machine, or Ray tasks
results       what the cells found, as the keys of comparison.json
pages         comparison.md, comparison.html and the tables on the terminal
"""
