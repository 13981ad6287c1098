"""From a dataset to a plan: facts are measured, then decided upon by pure functions. No torch."""
