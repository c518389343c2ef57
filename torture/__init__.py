"""Faults, made on purpose and by the hundred: what was acknowledged must survive them.

`python -m torture --help`. The service is the real one but for its model, which is the double of the tests:
facts are real bytes in real blobs and a real ledger, and take milliseconds instead of a second to write.
"""
