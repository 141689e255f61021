"""Launchers: the files of ``launch/`` with one run filled in, for SLURM, torchrun, DeepSpeed, Ray and Kubernetes.

A file of ``launch/`` runs as it is, with the words of a command behind its name.  The same file is what is rendered:
shell files between two marker lines, YAML files as trees.  So there is one source for both.
"""
