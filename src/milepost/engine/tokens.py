"""Tokens that work no more before they expire: those that work once and were used, and sessions that were signed out.

Every server looks into the same rows, and groups come one after the other, so a token is used once whichever servers are asked.
"""

from milepost.engine.commands import EndSession, UseToken
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.store.records import UsedToken


def use(command: UseToken, transaction: Transaction, state: EngineState) -> bool:
    """Use up a token; whether it was there to be used."""
    if transaction.used_token(command.token.id) is not None:
        return False
    transaction.use_token(UsedToken(command.token.id, None, command.token.expires_at))
    return True


def end_session(command: EndSession, transaction: Transaction, state: EngineState) -> None:
    """Remember that a session was signed out, and tell the feeds of every server."""
    if transaction.used_token(command.session) is None:
        transaction.use_token(UsedToken(command.session, None, command.expires_at))
        transaction.ended_sessions.append(command.session)
