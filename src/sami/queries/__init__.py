"""Queries: where they come from, when two are the same, and how they are split.

loaded = load_queries("queries.jsonl")  # or .csv, .tsv, .parquet, .txt, a folder, "owner/data-set"
splits = split_queries(loaded.queries, train=240, evaluation=60, seed=0)
"""

from sami.queries.loading import LoadedQueries, load_queries
from sami.queries.query import Query, Splits, hash_queries, normalize, split_queries

__all__ = ["LoadedQueries", "Query", "Splits", "hash_queries", "load_queries", "normalize", "split_queries"]
