"""Why samples are bad: `doctor` names the causes, each told apart from the others by measurements with error bars.

finding: what is handed back.
level_errors: errors of denoisers by noise level on noised items, beside those of the best simple denoisers.
sampling_checks: where sampling starts, whether it takes enough steps, and whether its values are the data's.
marginals: samples against data entry by entry.
"""
