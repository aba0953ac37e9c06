"""The parts that all stages share."""
