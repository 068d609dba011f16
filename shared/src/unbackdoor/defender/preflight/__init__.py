"""Before anything is tuned: whether model and clean samples fit each other, and what may be the matter."""
