"""One scenario a file: a function run(lab) that raises lab.Failure where something is not as promised."""
