"""Search: the numbers of a recipe tuned by black-box optimisation."""
