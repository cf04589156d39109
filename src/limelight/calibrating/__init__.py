"""Calibrating one model's grounding flag: word labels, thresholds, probabilities (:func:`limelight.calibrate`)."""
