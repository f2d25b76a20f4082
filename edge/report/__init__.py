"""Tables and plots, made from profiles alone."""
