"""Self-supervised pretraining of a backbone on unlabeled radiographs."""
