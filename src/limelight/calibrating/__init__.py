"""Fits the grounding flag of one model: labels of words, thresholds, probabilities (:func:`limelight.calibrate`)."""
