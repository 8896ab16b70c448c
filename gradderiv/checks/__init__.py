"""Problems × oracles × identities → report.

Our rules: ``verify`` runs the ``problems`` through the ``oracles`` and ``identities``, on the rules of the ``catalog``; ``layers``, ``production`` and
``published`` bring cases of their own. The wrong-on-purpose rules (``mutants``) and the table of who catches which (``kill``) check the checks.

Your function: ``check`` calls it (``inputs``, ``candidate``) and holds its backward against ``witnesses`` that only run its forward (``forward``,
``values``).

Shared: ``reference`` (forward passes that know nothing of ours), ``exact`` (pairs over the field), ``differences``, ``tolerance`` and ``scatter`` (where
tolerances come from), ``compare`` and ``diagnose`` (the verdict, and where it is wrong), ``report``, ``render``, ``plot``.
"""
