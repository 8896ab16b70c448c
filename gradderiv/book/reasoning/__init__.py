"""Whether a line of a derivation is true, and whether it follows.

equality     two named matrices, compared exactly;   slips: the small change that would mend a false line
algebra      the normal form: what needs no reason;  derivative: the product rule on it
rewrite      matching a law, and searching a way from line to line
names        one name, one matrix
reasons      laws, definitions, tangents, facts, citations; following: a line, its reasons, and why not
"""
