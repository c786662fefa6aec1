"""Measurements that anyone can repeat. Each is one command, which prints a table or, with `--json`, JSON.

python -m bench.train_step      the engine against a reference-style step and plain rows
python -m bench.scaling         cost against constitutions, prompt length and response length
python -m bench.generation      batch sizes of the transformers engine
python -m bench.profile         where a training pass spends its time
python -m bench.gpu             a model of mistral-7b's shape on a GPU
"""
