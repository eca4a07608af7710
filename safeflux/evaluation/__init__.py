"""The evaluation of masks: questions, detectors, rates with intervals, reports."""
