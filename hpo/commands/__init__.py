"""What each command of `hpo` does; `hpo.cli` gives them their names."""
