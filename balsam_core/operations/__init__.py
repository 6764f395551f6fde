"""What each call does: functions on a connection inside a transaction.

An operation is written once with SQLAlchemy Core for every database. It may run again after a rollback, so it does no
I/O of its own, reads no clock and draws no random number: ``tx.now`` is the time. Which process runs it is the
transport's affair.
"""
