"""Scaling studies: the same architectures at several sizes, and the law that their quality follows.

config/ladder.py -> `plan` (the runs) -> the executor of studies -> `collect` (points) -> `law`, `fit` and `equal`
(laws with their bands, cost at equal quality) -> `result` -> `report`, `html` and `figure`.
"""
