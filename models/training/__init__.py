"""What only training needs: the objective, the optimizers, memory, the journal of a run, resuming and stopping."""
