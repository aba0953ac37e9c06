"""Training, distillation and evaluation: one script a stage, and the modules that they share."""
