"""What facts add to the weights, and which version sees which of it.

A fact lives in plastic columns (a key, a value, a threshold) and, under the original rules, in
rank-one factors; many facts together may be folded into `down_proj`. Every row carries
`[born, died)`: version v sees a row iff `born <= v < died`. Publishing appends to tables and swaps
one reference per layer, so a reader never takes a lock, and a request that names its version gets
the same rows to its last token, whatever is published meanwhile.
"""

from npt_core.bank.bank import Bank
from npt_core.bank.bases import Product, folded
from npt_core.bank.layer import PlasticLayer
from npt_core.bank.matches import Match, in_order, matched
from npt_core.bank.matching import Whitening
from npt_core.bank.weights import BankError, Columns, Factors, FactWeights, Fold, Site

__all__ = [
    "Bank",
    "BankError",
    "Columns",
    "FactWeights",
    "Factors",
    "Fold",
    "Match",
    "PlasticLayer",
    "Product",
    "Site",
    "Whitening",
    "folded",
    "in_order",
    "matched",
]
