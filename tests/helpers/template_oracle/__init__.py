"""Ids and masks of chat templates against transformers, row by row and token by token.

    PYTHONPATH=tests/helpers python -m template_oracle [FOLDER | TOKENIZER ...] [--over TOKENIZER]

Templates are read from packages and folders; none is stored here. Two oracles say what is in the
loss: the `{% generation %}` marks of a template, or of the training twin that TRL ships beside it,
and what inference sees (the prompt for an answer, rendered by transformers, is not in the loss; all
that the template prints of the answer is). Where a mask differs from one of them, each token must
obey a rule that says why, and that is asserted of the token.
"""
