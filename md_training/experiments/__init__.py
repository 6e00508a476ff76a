"""The paper's tables as experiments: every cell a run, resumable, with its figures, its circumstances and its errors.

tables.py says which cells a table has and what the paper found; cells.py makes one; report.py compares them.
"""
