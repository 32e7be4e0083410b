"""What transferred: a teacher, its student before and after, and baselines, measured on the same text by one table of tokens.

Reading order: tokens (the table) -> figures, calibration, diversity (questions asked of it) -> rows, subjects (on what, of whom) ->
stretches, reading, measure (the work, kept in a folder) -> summary (evaluation.json). Where it did not: slices, topics -> gaps -> advice -> analysis.
"""
