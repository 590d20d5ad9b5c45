"""llama.cpp in this process: everything of it that june has is in this package.

Importing the package loads nothing. `needs`, `unloaded`, `scheduler`, `sequences`, `state_files`, `pace`,
`grammar` and `meter` do not load the library either; the other modules do, through `library`.

    model.py         the `ChatModel`: a thread that serves requests
    engine.py        one model and one context, in which all answers are decoded together
    scheduler.py     which answers are decoded together
    sequences.py     what the cache holds, and which sequence an answer gets
    answer.py        one answer while it is written
    unloaded.py      what june asks of this backend while no model is loaded
"""
