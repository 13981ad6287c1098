"""Models and plans of other tools, as ours."""
