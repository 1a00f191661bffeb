"""The store on one Redis or Valkey primary.

Owns connections, the settings that a server needs to lose nothing, and the scripts, of which each is one transition.

Reading begins at `store`; `scripts/` are the transitions, each with a head that says what it takes and promises.
"""
