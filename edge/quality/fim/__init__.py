"""Infilling benchmark: holes cut from any code, or HumanEval infilling."""
