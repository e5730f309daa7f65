"""The search room: what one process keeps in memory to search, derived from Postgres' rows.

Nothing here knows gRPC, SQL or settings; a view can be thrown away and rebuilt at any time.

text.py        text -> terms (folding, word splitting, stemming, bigrams for Chinese and kin)
bm25.py        terms -> word scores (inverted index)
matrix.py      vectors -> cosines, exact
graph.py       vectors -> cosines, by hnswlib, where they are many
vectors.py     both: a graph that is built in the background, and the rows it lacks
ranking.py     the shape all candidate lists share, and the one way to cut them
fusion.py      the two lists -> one
neighbours.py  scores that flow to what is beside a row
view.py        one search space: applies changes to both indexes, answers searches
stats.py       what is told of views
packing.py     strings -> bytes, for snapshots
snapshots.py   views on disk: written, read, checked, forgotten
threads.py     work in threads, waited for by the event loop
views.py       the views of a process: catching up, locking, eviction
"""
