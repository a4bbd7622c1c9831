"""Files of every kind with something wrong in them: nothing but errors of our own may come of it.

`make fuzz` tries 4,000 of them, `make test` the first 200; `python -m tests.fuzz --help` tells how
to try one again. What a number stands for is the same every time:

    sources.py     whole files, and how they are used
    mutations.py   what is done to one of them
    cases.py       a number -> a folder of files and what comes of using them
    workers.py     processes that are given numbers, and are watched
"""
