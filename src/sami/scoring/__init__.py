"""Log-probabilities of responses under constitutions.

M = logprob_matrix(model, collate(contrasts, pad_token_id))        # [B, C, R], fp32
"""

from sami.scoring.logprobs import logprob_matrix, token_logprobs
from sami.scoring.packing_check import PackingCheck, check_packing

__all__ = ["PackingCheck", "check_packing", "logprob_matrix", "token_logprobs"]
