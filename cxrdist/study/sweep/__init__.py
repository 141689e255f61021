"""A sweep: a search for the values of a fine-tuning's configuration, judged by validation AUROC alone."""
