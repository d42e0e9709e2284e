"""Studies: runs that train no network, or measure what no training loop does; one file each.

estimator_error    arXiv 2605.02701: the error of gradient estimators against batch size and failure probability
rates              arXiv 2605.02701: rates of PS-Clip-SGD and others on small problems
rates_matrix       arXiv 2605.11838: rates of spectral clipping on matrix problems
spectrum           arXiv 2605.11838: what outliers in the data do to singular values of gradients
trace_regression   arXiv 2605.11838: errors of clipped gradients under each threshold rule

`base` has the protocol that they share with the trainer, and the form of their rows.
"""

from clipbench.studies.estimator_error import EstimatorError
from clipbench.studies.rates import Rates
from clipbench.studies.rates_matrix import RatesMatrix
from clipbench.studies.spectrum import Spectrum
from clipbench.studies.trace_regression import TraceRegression

__all__ = ["EstimatorError", "Rates", "RatesMatrix", "Spectrum", "TraceRegression"]
