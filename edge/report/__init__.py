"""Tables, plots and pages of profiles."""
