"""Measurements that anyone can repeat, each one command: a table, or `--json`.

python -m bench.train_step      the engine against a reference-style step and plain rows
python -m bench.scaling         cost against constitutions, prompt length and response length
python -m bench.generation      batch sizes of the transformers engine
"""
