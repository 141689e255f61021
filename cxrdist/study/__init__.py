"""A study: the grid of cells, what each needs first, the ledger of what is done, and the statistics over all."""
