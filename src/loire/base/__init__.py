"""Values that every layer shares: errors, sampling parameters, configuration, step plans.

Standard library only.
"""
