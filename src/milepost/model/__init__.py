"""What is true: values and pure functions. No I/O, no clock, no asyncio.

    jsonvalue    a Python value -> a JSON value; JSON equality; size in bytes
    path         `$.a.b[0]`: parse and read
    operations   the six metadata operations, their laws, and the buffer that collapses them
    document     a metadata document: value, version, and a size that is known at all times
    run          a run and its lifecycle
    retry        back-off and durations

This package and `milepost.errors` import nothing else of Milepost.
"""
