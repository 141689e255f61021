"""Statistics over saved predictions: metrics, paired bootstrap of patients, tests of differences, thresholds.

Shapes: N images, K findings, R redraws, P patients.  numpy, numba and scipy only; tables are read in `predictions`, and
`compare` puts everything together.  From the ground up:

- `resample`: redraws, and statistics worked out under many of them at once; `kernels`: their compiled loops.
- `auroc`, `precision`, `rates`, `calibration`: metrics; `metrics`: all of them by name; `meanings`: in words.
- `averages`: over findings.
- `threshold`: chosen on validation predictions.
- `files`: a model's prediction files; `predictions`: one of them, checked.
- `bootstrap`, `intervals`, `inference`, `families`, `seeds`, `subgroups`: from redraws to statements.
- `delong`, `permutation`, `mcnemar`, together in `beside`: tests that stand beside the bootstrap.
- `power`: before there are any data.
- `tayebi2024`: another study's procedure, for replication.
"""
