"""``timellm doctor``: look at machines, ranks, data and backbone before a job does.

Every rank examines itself and rank 0 judges. What one rank says to another goes through the store
in which they meet: a rank that dies, hangs or never comes is then a row of the table, not a wait.
"""
