"""The market simulator: one account, one order, three decisions taken at the same time."""
