"""How well middles are filled: held-out holes of any code, and HumanEval infilling."""
