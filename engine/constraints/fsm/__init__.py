"""A small finite-state machine for regexes, to be read and to check the other backends against.

Regex -> syntax tree (`regex_syntax`) -> smallest deterministic automaton over bytes (`automaton`) -> what it forces
(`compressed`) -> masks over a vocabulary (`backend`).

Zheng et al.: SGLang, arXiv 2312.07104, section 4.
"""
